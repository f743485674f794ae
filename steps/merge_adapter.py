"""Step 6: merge the adapter into the bf16 base, prove that it is the tuned model, and judge it."""

from dataclasses import replace
from typing import Annotated, Any

from zenml import step
from zenml.config.cache_policy import CachePolicy
from zenml.types import HTMLString

from materializers.evaluation_report import EvaluationReportMaterializer
from materializers.merge_result import MergeResultMaterializer
from materializers.page import PageMaterializer
from materializers.promotion_decision import PromotionDecisionMaterializer
from steps.context import begin_tracking, run_context
from steps.pages import evaluation_page
from vlmtune.catalog.catalog import Catalog
from vlmtune.config.evaluation import EvaluationConfig, GateConfig
from vlmtune.config.model import ModelConfig
from vlmtune.config.publishing import MergeConfig
from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.files import ScratchFolder
from vlmtune.models.adapter import Adapter
from vlmtune.models.merge_record import MergeResult
from vlmtune.models.merging import merge
from vlmtune.prompting import Examples, with_pictures
from vlmtune.tracking import findings
from vlmtune.tracking.code_version import code_version


def merge_adapter_code() -> str:
    """Part of the cache key: the code and libraries that merge, generate, score and judge."""
    return code_version(__name__)


@step(
    output_materializers={
        "merged_model": MergeResultMaterializer,
        "merged_evaluation": EvaluationReportMaterializer,
        "merged_decision": PromotionDecisionMaterializer,
        "merged_report": PageMaterializer,
    },
    cache_policy=CachePolicy(cache_func=merge_adapter_code),
)
def merge_adapter(
    catalog: Catalog,
    examples: Examples,
    adapter: Adapter,
    report: EvaluationReport,
    decision: PromotionDecision,
    model: ModelConfig,
    evaluation: EvaluationConfig,
    generation: dict[str, Any],
    gate: GateConfig,
    merging: MergeConfig,
) -> tuple[
    Annotated[MergeResult, "merged_model"],
    Annotated[EvaluationReport, "merged_evaluation"],
    Annotated[PromotionDecision, "merged_decision"],
    Annotated[HTMLString, "merged_report"],
]:
    """Merge into a freshly loaded bf16 base at the recorded revision, never into 4 bits, and let
    the merged model pass the same gate: its descriptions are what users get.

    Raises:
        GateFailed: the tuned model has failed.
    """
    from vlmtune.evaluation.comparison import make_exam
    from vlmtune.evaluation.merged import judge_merged, why_not_merged

    decision.require_not_failed()
    begin_tracking(catalog)
    scratch = ScratchFolder(run_context().work_dir / "merging")
    rows, reason = with_pictures(examples.held_out, catalog), why_not_merged(decision, merging)
    share = merging.max_relative_divergence
    merged = merge(adapter, model, rows, scratch.path, reason, share, generation)
    merged = replace(merged, scratch=scratch)
    exam = make_exam(examples.held_out, catalog, evaluation, generation)
    report, decision = judge_merged(merged, model, exam, report, decision, gate)
    findings.log_decision(decision)
    page = evaluation_page(report, decision, catalog, adapter)
    return merged, report, decision, HTMLString(page)
