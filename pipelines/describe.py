"""The describing pipeline: a trained model writes descriptions for a new catalog.

python run.py --pipeline describe --config shop.yaml --model-run runs/latest
"""

from typing import Any

from zenml import pipeline
from zenml.enums import ExecutionMode

from pipelines.rows import read_rows
from steps.describe_catalog import describe_catalog
from vlmtune.config.tree import FinetuneConfig
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.describer import ChosenModel


@pipeline(name="describe", execution_mode=ExecutionMode.FAIL_FAST)
def describe(
    config: FinetuneConfig,
    catalog_version: str | None,
    base: BaseModelRef,
    chosen: ChosenModel,
    tracker: str | None,
) -> None:
    """Catalog -> ledger -> descriptions, with flags for a human.

    Args:
        config: the new catalog, and all else as the run has it that trained the model.
        catalog_version: what the catalog's name stands for today; None to look when it runs.
        base: the model's own base, by whose processor tokens are counted.
        chosen: the trained model.
        tracker: name of the stack's experiment tracker, if it has one.
    """
    tracked: dict[str, Any] = {"experiment_tracker": tracker} if tracker else {}
    catalog, ledger = read_rows(config, catalog_version, None, base)
    describe_catalog.with_options(**tracked)(
        catalog,
        ledger,
        chosen,
        config.model,
        config.prompt,
        config.generation,
        config.evaluation.rules,
        config.describe,
    )
