"""Step 6: merge the adapter into the bf16 base, and prove that it is the tuned model."""

from dataclasses import replace
from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers.merge_result import MergeResultMaterializer
from steps.context import run_context
from vlmtune.catalog.catalog import Catalog
from vlmtune.config.model import ModelConfig
from vlmtune.config.publishing import MergeConfig
from vlmtune.files import ScratchFolder
from vlmtune.models.adapter import Adapter
from vlmtune.models.merge_record import MergeResult
from vlmtune.models.merging import merge
from vlmtune.prompting import Examples, with_pictures
from vlmtune.tracking.code_version import code_version


def merge_adapter_code() -> str:
    """Part of the cache key: the code and libraries that merge."""
    return code_version(__name__)


@step(
    output_materializers=MergeResultMaterializer,
    cache_policy=CachePolicy(cache_func=merge_adapter_code),
)
def merge_adapter(
    catalog: Catalog,
    examples: Examples,
    adapter: Adapter,
    model: ModelConfig,
    merging: MergeConfig,
) -> Annotated[MergeResult, "merged_model"]:
    """Merge into a freshly loaded bf16 base at the recorded revision, never into 4 bits."""
    scratch = ScratchFolder(run_context().work_dir / "merging")
    held_out = with_pictures(examples.held_out, catalog)
    merged = merge(adapter, model, merging.enabled, held_out, scratch.path)
    if merged.record.status == "failed":
        raise RuntimeError(f"the merged model is not kept: {merged.record.reason}.")
    # The folder goes with the result, once that is stored.
    return replace(merged, scratch=scratch)
