"""The page that an evaluation leaves."""

from steps.context import run_name
from vlmtune.catalog.catalog import Catalog
from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.models.adapter import Adapter


def evaluation_page(
    report: EvaluationReport, decision: PromotionDecision, catalog: Catalog, adapter: Adapter
) -> str:
    """HTML of an evaluation in the run that the calling step belongs to."""
    from vlmtune.evaluation.comparison import picture_finder
    from vlmtune.evaluation.report import render_report

    base = adapter.record.base
    facts = {
        "catalog": f"{catalog.source} ({len(catalog.rows)} rows)",
        "base model": f"{base.id} at {base.revision[:19]}",
        **({"champion": f"v{decision.champion}"} if decision.champion else {}),
        **adapter.record.describe(),
    }
    log = adapter.record.log_history
    return render_report(report, picture_finder(catalog), run_name(), facts, log, decision)
