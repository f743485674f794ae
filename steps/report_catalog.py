"""Between steps 1 and 2: show what is in the catalog, what was kept out, and what changed."""

import logging
from typing import Annotated, Any

from zenml import step
from zenml.config.cache_policy import CachePolicy
from zenml.types import HTMLString

from materializers.facts import FactsMaterializer
from materializers.page import PageMaterializer
from steps.context import begin_tracking, run_name
from steps.previous import load_previous
from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.config.data import DataConfig
from vlmtune.config.model import ModelConfig
from vlmtune.models.base_model import BaseModelRef
from vlmtune.tracking import experiment
from vlmtune.tracking.code_version import code_version

logger = logging.getLogger(__name__)


def report_catalog_code() -> str:
    """Part of the cache key: the code and libraries that compare and report."""
    return code_version(__name__)


@step(
    output_materializers={
        "data_report": PageMaterializer,
        "ledger_page": PageMaterializer,
        "changes": FactsMaterializer,
        "warnings": FactsMaterializer,
    },
    cache_policy=CachePolicy(cache_func=report_catalog_code),
)
def report_catalog(
    catalog: Catalog,
    ledger: RowLedger,
    data: DataConfig,
    model: ModelConfig,
    base: BaseModelRef,
    min_groups: int,
    max_rows: int,
    max_new_tokens: int | None,
) -> tuple[
    Annotated[HTMLString, "data_report"],
    Annotated[HTMLString, "ledger_page"],
    Annotated[dict[str, Any], "changes"],
    Annotated[dict[str, Any], "warnings"],
]:
    """Write the data report and the ledger's page, and say what would keep a model back.

    It comes before the step that may stop the run, so that the pages are there when it does.

    Args:
        model, base: by whose tokenizer descriptions are counted.
        min_groups, max_rows, max_new_tokens: of `gate`, `evaluation` and `generation`.
    """
    from vlmtune.catalog.changes import compare_catalogs
    from vlmtune.catalog.report.data_report import render_data_report
    from vlmtune.catalog.report.ledger_page import render_ledger_page
    from vlmtune.evaluation.preflight import warn_before_training
    from vlmtune.models.processor import load_processor

    begin_tracking(catalog)
    previous = load_previous(ledger.previous)
    changes = None
    if previous:
        changes = compare_catalogs(catalog, ledger, previous.catalog, previous.ledger, data)
    processor: Any = load_processor(base.id, base.commit, model)
    warnings = warn_before_training(
        catalog,
        ledger,
        processor.tokenizer,
        min_groups=min_groups,
        max_rows=max_rows,
        max_new_tokens=max_new_tokens,
    )
    for key, problem in warnings.items():
        logger.warning("%s: %s", key, problem)
    report = render_data_report(catalog, ledger, data, changes, run_name(), warnings)
    page = render_ledger_page(catalog, ledger, run_name())
    experiment.log_ledger(ledger)
    experiment.log_html(report, "data_report.html")
    experiment.log_html(page, "ledger.html")
    return HTMLString(report), HTMLString(page), changes.to_json() if changes else {}, warnings
