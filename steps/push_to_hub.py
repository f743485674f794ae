"""Step 7: publish adapter and merged model, or leave them ready to push, if the gate lets them."""

import logging
from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers.publication import PublicationMaterializer
from steps.context import run_context, run_name
from steps.registry import open_registry
from steps.versions import register, settle
from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.config.model import ModelConfig
from vlmtune.config.publishing import HubConfig
from vlmtune.errors import UserError
from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.models.adapter import Adapter
from vlmtune.models.merge_record import MergeResult
from vlmtune.publishing.publication import (
    Publication,
    gather_facts,
    publish,
    tested_files,
    write_cards,
    write_receipts,
)
from vlmtune.tracking.code_version import code_version

logger = logging.getLogger(__name__)


def push_to_hub_code() -> str:
    """Part of the cache key: the code and libraries that publish."""
    return code_version(__name__)


@step(
    output_materializers=PublicationMaterializer,
    cache_policy=CachePolicy(cache_func=push_to_hub_code),
)
def push_to_hub(
    catalog: Catalog,
    ledger: RowLedger,
    adapter: Adapter,
    merged_model: MergeResult,
    evaluation: EvaluationReport,
    decision: PromotionDecision,
    hub: HubConfig,
    model: ModelConfig,
) -> Annotated[Publication, "publication"]:
    """Register the model, write the cards and, if a repo is named, push; what has arrived as it
    was tested becomes the champion. A version that may not is only made ready to push.

    Args:
        model: how the base model is loaded, kept for the champion of later runs.

    Raises:
        GateFailed: the merged model has failed.
        UserError: the push failed; the version stays registered, and unpublished.
    """
    decision.require_not_failed()
    if decision.verdict == "kept_back":
        return Publication(status="kept_back", reason=decision.describe(), cards={})
    context = run_context()
    registry = open_registry(context.catalog_name)
    version = registry and register(registry, catalog, adapter, merged_model, decision, model)
    tested = tested_files(decision, merged_model)
    facts = gather_facts(
        hub,
        catalog,
        adapter,
        merged_model,
        evaluation,
        run_name=version.facts.run_name if version else run_name(),
        config_yaml=context.config_yaml,
        provenance=context.provenance,
        row_counts=ledger.counts,
        decisions=dict.fromkeys(tested, decision),
        tested=tested,
    )
    cards, receipts = write_cards(facts), write_receipts(facts)
    tag = f"v{version.number}" if version else None
    objection = registry.objection(version) if registry and version else None
    if objection and not context.version:  # nobody named it: what is not due is not pushed
        logger.warning("%s: nothing was pushed", objection)
        hub = hub.model_copy(update={"repo_id": None})
        done = publish(hub, adapter, merged_model, cards, tested, receipts)
        return done.model_copy(update={"reason": objection})
    done = publish(hub, adapter, merged_model, cards, tested, receipts, tag)
    if registry and version:
        settle(registry, version, done)
    if done.status == "unpublished":
        raise UserError(done.reason, "Later: python run.py --pipeline publish, with this config.")
    return done
