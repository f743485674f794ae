"""The checking pipeline: a catalog read, judged and reported, without training on it.

python run.py --pipeline check --config configs/demo.yaml
"""

from typing import Any

from zenml import pipeline
from zenml.enums import ExecutionMode

from pipelines.rows import checked_rows
from vlmtune.config.tree import FinetuneConfig
from vlmtune.models.base_model import BaseModelRef


@pipeline(name="check", execution_mode=ExecutionMode.FAIL_FAST)
def check(
    config: FinetuneConfig,
    catalog_version: str | None,
    previous: str | None,
    base: BaseModelRef,
    tracker: str | None,
) -> None:
    """Catalog -> ledger, data report and conversations; fails if too much is in quarantine.

    Args:
        catalog_version: what the catalog's name stands for today; None to look when it runs.
        previous: id of the ledger whose split is carried on.
        base: the model by whose processor tokens are counted; its weights are not loaded.
        tracker: name of the stack's experiment tracker, if it has one.
    """
    tracked: dict[str, Any] = {"experiment_tracker": tracker} if tracker else {}
    checked_rows(config, catalog_version, previous, base, tracked)
