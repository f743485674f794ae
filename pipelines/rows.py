"""What all pipelines begin with: from a catalog to conversations, with every row accounted for."""

from typing import Any

from steps.format_messages import format_messages
from steps.load_dataset import load_dataset
from steps.report_catalog import report_catalog
from vlmtune.config.tree import FinetuneConfig
from vlmtune.models.base_model import BaseModelRef


def checked_rows(
    config: FinetuneConfig,
    catalog_version: str | None,
    previous: str | None,
    base: BaseModelRef,
    tracked: dict[str, Any],
) -> tuple[Any, Any, Any]:
    """Wire the steps that read, report and format a catalog.

    Args:
        catalog_version: what the catalog's name stands for today; None to look when it runs.
        previous: id of the ledger whose split is carried on.
        tracked: options of steps that log to the experiment tracker.

    Returns:
        The outputs catalog, ledger and examples.
    """
    catalog, ledger = read_rows(config, catalog_version, previous, base)
    report_catalog.with_options(**tracked)(
        catalog,
        ledger,
        config.data,
        config.model,
        base,
        config.gate.min_groups,
        config.evaluation.max_rows,
        config.generation.get("max_new_tokens"),
    )
    examples = format_messages(
        catalog, ledger, config.data, config.prompt, after=["report_catalog"]
    )
    return catalog, ledger, examples


def read_rows(
    config: FinetuneConfig, catalog_version: str | None, previous: str | None, base: BaseModelRef
) -> tuple[Any, Any]:
    """Wire the step that reads a catalog; returns the outputs catalog and ledger."""
    data = config.data
    # The cache cannot see what is behind an address, or whether a catalog without a version has
    # changed: these are read each time, and the steps after it come from the cache if their
    # content is the same.
    read_always = load_dataset.with_options(enable_cache=False)
    load = read_always if catalog_version is None or data.downloads.refresh else load_dataset
    return load(data, config.prompt, config.model, base, catalog_version, previous)
