"""Versions of a model in the registry: what they are made of, and what becomes of them."""

import logging

from zenml import get_step_context

from steps.context import run_context, run_name
from steps.made_from import own_inputs
from vlmtune.catalog.catalog import Catalog
from vlmtune.config.model import ModelConfig
from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.models.adapter import Adapter
from vlmtune.models.merge_record import MergeResult
from vlmtune.publishing.publication import Publication
from vlmtune.revision import hash_text
from vlmtune.tracking.moves import NotDue
from vlmtune.tracking.registry import Registry, Version, VersionFacts

logger = logging.getLogger(__name__)

# Kept with a version: all that is needed to load, judge or publish it again.
ARTIFACTS = (
    *("catalog", "ledger", "examples", "quantized_model", "adapter"),
    *("merged_model", "merged_evaluation", "merged_decision"),
)


def register(
    registry: Registry,
    catalog: Catalog,
    adapter: Adapter,
    merged: MergeResult,
    decision: PromotionDecision,
    model: ModelConfig,
) -> Version:
    """Register the model of the run that the calling step belongs to; a run that is about a
    version has one already."""
    if number := run_context().version:
        return registry.find(number)
    found = {
        name: versions[0]
        for step in get_step_context().pipeline_run.steps.values()
        for name, versions in step.outputs.items()
        if versions
    }
    facts = VersionFacts(
        inputs=own_inputs(adapter.record.base, catalog),
        content=hash_text(f"{adapter.content_hash} {sorted(merged.record.files.items())}"),
        run_name=run_name(),
        artifacts={name: str(found[name].id) for name in ARTIFACTS if name in found},
        base_revision=adapter.record.base.revision,
        model=model,
        beaten=decision.champion,
        verdict=decision.describe(),
    )
    return registry.register(facts, str(found["adapter"].uri), adapter.record.mlflow_run_id)


def settle(registry: Registry, version: Version, publication: Publication) -> None:
    """Note what became of a version; one that has arrived, or is wanted nowhere, is the champion
    from now on, if it is still due."""
    if publication.status == "unpublished":
        registry.mark(version, "no")
        return
    if publication.status == "pushed":
        registry.mark(version, "yes")
    elif version.published != "yes":
        registry.mark(version, "not wanted")
    try:
        registry.promote_if_due(version, f"{run_name()}: {version.facts.verdict}")
    except NotDue as error:
        logger.warning("%s", error)
