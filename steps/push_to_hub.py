"""Step 7: publish adapter and merged model, or leave them ready to push."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers.publication import PublicationMaterializer
from steps.context import run_context, run_name
from vlmtune.catalog.catalog import Catalog
from vlmtune.config.publishing import HubConfig
from vlmtune.errors import UserError
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.models.adapter import Adapter
from vlmtune.models.merging import MergeResult
from vlmtune.publishing.publication import (
    Publication,
    folders_to_publish,
    gather_facts,
    publish,
    write_cards,
    write_receipts,
)
from vlmtune.revision import hash_files
from vlmtune.tracking.code_version import code_version


def push_to_hub_code() -> str:
    """Part of the cache key: the code and libraries that publish."""
    return code_version(__name__)


@step(
    output_materializers=PublicationMaterializer,
    cache_policy=CachePolicy(cache_func=push_to_hub_code),
)
def push_to_hub(
    catalog: Catalog,
    adapter: Adapter,
    merged_model: MergeResult,
    evaluation: EvaluationReport,
    hub: HubConfig,
) -> Annotated[Publication, "publication"]:
    """Write the model cards and, if a repo is named, push to it."""
    context = run_context()
    folders = folders_to_publish(hub, adapter, merged_model)
    tested = {kind: hash_files(folder) for kind, folder in folders.items()}
    facts = gather_facts(
        hub,
        catalog,
        adapter,
        merged_model,
        evaluation,
        run_name=run_name(),
        config_yaml=context.config_yaml,
        provenance=context.provenance,
        tested=tested,
    )
    done = publish(
        hub, adapter, merged_model, write_cards(facts), tested, receipts=write_receipts(facts)
    )
    if done.status == "unpublished":
        raise UserError(done.reason)
    return done
