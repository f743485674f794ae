"""Step 6: merge the adapter into the bf16 base."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers.merge_result import MergeResultMaterializer
from vlmtune.config.model import ModelConfig
from vlmtune.config.publishing import MergeConfig
from vlmtune.models.adapter import Adapter
from vlmtune.models.merging import MergeResult, merge
from vlmtune.tracking.code_version import code_version


def merge_adapter_code() -> str:
    """Part of the cache key: the code and libraries that merge."""
    return code_version(__name__)


@step(
    output_materializers=MergeResultMaterializer,
    cache_policy=CachePolicy(cache_func=merge_adapter_code),
)
def merge_adapter(
    adapter: Adapter, model: ModelConfig, merging: MergeConfig
) -> Annotated[MergeResult, "merged_model"]:
    """Merge into a freshly loaded bf16 base at the recorded revision, never into 4 bits."""
    return merge(adapter, model, merging.enabled)
