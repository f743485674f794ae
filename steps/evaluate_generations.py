"""Step 5: base and tuned model on exactly the same held-out rows."""

from typing import Annotated, Any

from zenml import step
from zenml.config.cache_policy import CachePolicy
from zenml.types import HTMLString

from materializers.evaluation_report import EvaluationReportMaterializer
from steps.context import begin_tracking, run_name
from vlmtune.catalog.catalog import Catalog
from vlmtune.config.evaluation import EvaluationConfig
from vlmtune.config.model import ModelConfig
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.models.adapter import Adapter, attach_adapter
from vlmtune.models.quantized import QuantizedModel
from vlmtune.prompting import Examples
from vlmtune.tracking import experiment
from vlmtune.tracking.code_version import code_version


def evaluate_generations_code() -> str:
    """Part of the cache key: the code and libraries that generate, score and report."""
    return code_version(__name__)


@step(
    output_materializers={"evaluation": EvaluationReportMaterializer},
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
    example_rows: int,
) -> tuple[Annotated[EvaluationReport, "evaluation"], Annotated[HTMLString, "report"]]:
    """Describe the held-out rows with the adapter switched off and on, and compare.

    Args:
        generation: options of transformers.GenerationConfig.
        example_rows: rows in MLflow's table with pictures.
    """
    from vlmtune.evaluation.comparison import compare, picture_finder
    from vlmtune.evaluation.report import render_report

    begin_tracking(catalog)
    base_model, processor = quantized_model.load(model)
    report = compare(
        attach_adapter(base_model, adapter),
        processor,
        examples.held_out,
        catalog,
        evaluation,
        generation,
    )
    experiment.log_evaluation(report, catalog, example_rows, adapter.record.mlflow_run_id)
    facts = {
        "catalog": f"{catalog.source} ({len(catalog.rows)} rows)",
        "base model": f"{quantized_model.base.id} at {quantized_model.base.revision[:19]}",
        **adapter.record.describe(),
    }
    page = render_report(
        report, picture_finder(catalog), run_name(), facts, adapter.record.log_history
    )
    experiment.log_html(page, "report.html")
    return report, HTMLString(page)
