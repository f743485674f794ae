"""Step 5: base, tuned model and champion on exactly the same held-out rows, and the gate."""

from typing import Annotated, Any, Literal

from zenml import step
from zenml.config.cache_policy import CachePolicy
from zenml.types import HTMLString

from materializers.evaluation_report import EvaluationReportMaterializer
from materializers.page import PageMaterializer
from materializers.promotion_decision import PromotionDecisionMaterializer
from steps.champion import champion_now, rival_of
from steps.context import begin_tracking
from steps.pages import evaluation_page
from vlmtune.catalog.catalog import Catalog
from vlmtune.config.evaluation import EvaluationConfig, GateConfig
from vlmtune.config.model import ModelConfig
from vlmtune.evaluation.gate import PromotionDecision, decide
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.models.adapter import Adapter, attach_adapter
from vlmtune.models.quantized import QuantizedModel
from vlmtune.prompting import Examples
from vlmtune.revision import hash_files
from vlmtune.tracking import experiment, findings
from vlmtune.tracking.code_version import code_version
from vlmtune.tracking.registry import ChampionRef


def evaluate_generations_code() -> str:
    """Part of the cache key: the code and libraries that generate, score and report."""
    return code_version(__name__)


@step(
    output_materializers={
        "evaluation": EvaluationReportMaterializer,
        "decision": PromotionDecisionMaterializer,
        "report": PageMaterializer,
    },
    cache_policy=CachePolicy(cache_func=evaluate_generations_code),
)
def evaluate_generations(
    catalog: Catalog,
    examples: Examples,
    quantized_model: QuantizedModel,
    adapter: Adapter,
    model: ModelConfig,
    evaluation: EvaluationConfig,
    generation: dict[str, Any],
    gate: GateConfig,
    champion: ChampionRef | Literal["latest"] | None,
    example_rows: int,
) -> tuple[
    Annotated[EvaluationReport, "evaluation"],
    Annotated[PromotionDecision, "decision"],
    Annotated[HTMLString, "report"],
]:
    """Describe the held-out rows with each model, and judge the tuned one.

    Args:
        generation: options of transformers.GenerationConfig.
        champion: the version to beat, or `latest` for the champion as of now; None if there is
            none.
        example_rows: rows in MLflow's table with pictures.
    """
    from vlmtune.evaluation.comparison import compare, make_exam

    begin_tracking(catalog)
    exam = make_exam(examples.held_out, catalog, evaluation, generation)
    champion = champion_now(champion, quantized_model.base, catalog)
    rival = rival_of(champion, exam, quantized_model.base)
    base_model, processor = quantized_model.load(model)
    report = compare(exam, attach_adapter(base_model, adapter), processor, **rival)
    beaten = champion.number if champion else None
    decision = decide(report, gate, champion=beaten).of_files(hash_files(adapter.folder))
    findings.log_evaluation(report, catalog, example_rows, adapter.record.mlflow_run_id)
    findings.log_decision(decision)
    page = evaluation_page(report, decision, catalog, adapter)
    experiment.log_html(page, "report.html")
    return report, decision, HTMLString(page)
