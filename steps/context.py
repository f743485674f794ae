"""What a step may know of the run it belongs to, beyond its own inputs.

It travels in the pipeline's `extra` and so is no part of any cache key: the run's name or the
commit it was started from must not run a step again.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from zenml import get_step_context, log_metadata

from vlmtune.catalog.catalog import Catalog
from vlmtune.tracking import experiment
from vlmtune.tracking.provenance import Provenance


class RunContext(BaseModel):
    """Facts of the whole run.

    Attributes:
        config: the resolved configuration, as plain values.
        config_yaml: the same as the text that is kept.
        provenance: code commit, lock hash and package versions.
        work_dir: where checkpoints are kept.
        catalog_name: names the registered model that versions belong to.
        inputs: fingerprint of all that the adapter is made from; empty if that is known only when
            the run reads its catalog.
        version: number of the registered version that the run is about, if there is one.
    """

    model_config = ConfigDict(frozen=True)

    config: dict[str, Any]
    config_yaml: str
    provenance: Provenance
    work_dir: Path
    catalog_name: str = ""
    inputs: str = ""
    version: str | None = None


def run_context() -> RunContext:
    """The context of the run that the calling step belongs to."""
    return RunContext.model_validate(get_step_context().pipeline_run.config.extra["run_context"])


def begin_tracking(catalog: Catalog, context: str = "training") -> str | None:
    """Log the run's config, code and catalog to MLflow; returns the id of the MLflow run.

    Args:
        context: what the catalog is used for.

    The id is kept with the step, so that `run.py lineage` finds the MLflow run again.
    """
    run = run_context()
    experiment.log_run(run.config, run.config_yaml, run.provenance)
    experiment.log_catalog(catalog, context)
    run_id = experiment.active_run_id()
    if run_id:
        log_metadata({"mlflow_run_id": run_id})
    return run_id


def run_name() -> str:
    """Name of the pipeline run that the calling step belongs to."""
    return get_step_context().pipeline_run.name
