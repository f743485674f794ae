"""Describes a new catalog with a trained model."""

from typing import Annotated, Any

from zenml import step
from zenml.config.cache_policy import CachePolicy
from zenml.types import HTMLString

from materializers.descriptions import DescriptionsMaterializer
from materializers.page import PageMaterializer
from steps.chosen_model import open_describer
from steps.context import begin_tracking, run_context, run_name
from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.config.data import PromptConfig
from vlmtune.config.describing import DescribeConfig
from vlmtune.config.evaluation import RulesConfig
from vlmtune.config.model import ModelConfig
from vlmtune.describing.results import Descriptions
from vlmtune.models.describer import ChosenModel
from vlmtune.tracking import experiment, findings
from vlmtune.tracking.code_version import code_version


def describe_catalog_code() -> str:
    """Part of the cache key: the code and libraries that write, check and show texts."""
    return code_version(__name__)


@step(
    output_materializers={
        "descriptions": DescriptionsMaterializer,
        "descriptions_page": PageMaterializer,
    },
    cache_policy=CachePolicy(cache_func=describe_catalog_code),
)
def describe_catalog(
    catalog: Catalog,
    ledger: RowLedger,
    chosen: ChosenModel,
    model: ModelConfig,
    prompt: PromptConfig,
    generation: dict[str, Any],
    rules: RulesConfig,
    settings: DescribeConfig,
) -> tuple[Annotated[Descriptions, "descriptions"], Annotated[HTMLString, "descriptions_page"]]:
    """Write a description for each row, going on where an interrupted run was.

    Args:
        generation: options of transformers.GenerationConfig.
    """
    from vlmtune.describing.catalog import DescribingPlan
    from vlmtune.describing.catalog import describe_catalog as describe
    from vlmtune.describing.page import render_descriptions

    begin_tracking(catalog, context="describing")
    plan = DescribingPlan(
        prompt=prompt,
        generation=generation,
        rules=rules,
        model=model,
        settings=settings,
        folder=run_context().work_dir / "describing",
        code=code_version("vlmtune.evaluation.generation"),
    )
    descriptions = describe(catalog, ledger, open_describer(chosen), plan)
    page = render_descriptions(descriptions, catalog, ledger, run_name(), settings.page_rows)
    findings.log_descriptions(descriptions.record)
    experiment.log_html(page, "descriptions.html")
    return descriptions, HTMLString(page)
