"""What a run leaves in MLflow, but for what it found out of models: see findings.py."""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import Decision, RowLedger, flat_line
from vlmtune.revision import is_local
from vlmtune.tracking.provenance import Provenance

logger = logging.getLogger(__name__)

PARAM_LENGTH = 500  # MLflow 3 takes up to 6,000; longer values are in the config artifact
LEDGER_ROWS = 2000


def active_run_id() -> str | None:
    """Id of the MLflow run that this step logs to; None if the run is not tracked."""
    import mlflow

    run = mlflow.active_run()
    return run.info.run_id if run else None


def log_run(config: dict[str, Any], config_yaml: str, provenance: Provenance) -> None:
    """Log the resolved config, as an artifact and as flat params, and where the code is from."""
    import mlflow

    if not active_run_id():
        return
    mlflow.log_text(config_yaml, "config.resolved.yaml")
    mlflow.log_params({key: str(value)[:PARAM_LENGTH] for key, value in _flatten(config).items()})
    mlflow.set_tags(
        {
            "vlmtune.code_commit": provenance.code_commit or "unknown",
            "vlmtune.lock_hash": provenance.lock_hash or "unknown",
        }
    )
    mlflow.log_dict(provenance.model_dump(), "provenance.json")


def log_catalog(catalog: Catalog, context: str = "training") -> None:
    """Name the catalog, with its digest, as the run's data-set input.

    Args:
        context: what it is used for.
    """
    import mlflow
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    if not active_run_id():
        return
    if is_local(catalog.source):
        with warnings.catch_warnings():  # MLflow finds its own local source twice
            warnings.simplefilter("ignore", UserWarning)
            source = resolve_dataset_source(str(Path(catalog.source).resolve()))
    else:
        source = HuggingFaceDatasetSource(catalog.source, revision=catalog.version)
    digest = catalog.version.removeprefix("sha256:")[:36]  # MLflow's limit for a digest
    mlflow.log_input(MetaDataset(source, name="catalog", digest=digest), context=context)
    mlflow.set_tag("vlmtune.catalog_version", catalog.version)


def log_ledger(ledger: RowLedger) -> None:
    """Log the counts of the row ledger, its lines as a table, and all of it as a csv file."""
    import mlflow

    if not active_run_id():
        return
    mlflow.log_metrics({f"data/{name}": count for name, count in ledger.counts.items()})
    mlflow.log_metrics({f"data/reason/{code}": n for code, n in ledger.reason_counts.items()})
    mlflow.log_metric("data/pictures_decoded", ledger.pictures_decoded)
    with tempfile.TemporaryDirectory() as folder:
        mlflow.log_artifact(str(ledger.write_csv(Path(folder) / "ledger.csv")))
    mlflow.log_table(_ledger_table(ledger), "ledger.json")


def _ledger_table(ledger: RowLedger) -> dict[str, list[Any]]:
    """Quarantined rows first, then duplicates, repaired and kept ones, as many as MLflow shows
    well; the whole ledger is in ledger.csv."""
    order = [Decision.QUARANTINED, Decision.DUPLICATE, Decision.REPAIRED, Decision.KEPT]
    ranked = sorted(enumerate(ledger.lines["decision"]), key=lambda entry: order.index(entry[1]))
    shown = ledger.lines.select([number for number, _ in ranked[:LEDGER_ROWS]])
    rows = [flat_line(line) for line in shown]
    return {name: [row[name] for row in rows] for name in rows[0]}


def log_training_metrics(metrics: dict[str, float], step: int) -> None:
    """Log what the Trainer reported at a step."""
    import mlflow

    if active_run_id():
        mlflow.log_metrics(metrics, step=step)


def log_html(html: str, name: str) -> None:
    """Keep a page with the run."""
    import mlflow

    if active_run_id():
        mlflow.log_text(html, name)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
