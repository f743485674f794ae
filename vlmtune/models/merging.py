"""Merging an adapter into its base, in bf16 and never into 4 bits."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from vlmtune.artifact import Artifact
from vlmtune.config.model import ModelConfig
from vlmtune.models.adapter import Adapter, attach_adapter
from vlmtune.models.base_model import BaseModelRef, require_unchanged
from vlmtune.models.quantized import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


class MergeRecord(BaseModel):
    """Whether there is a merged model, and of what.

    Attributes:
        status: merged or skipped.
        reason: why it was skipped; empty for a merged model.
        base: the base model that was merged into.
        adapter_hash: content hash of the adapter.
    """

    model_config = ConfigDict(frozen=True)

    status: Literal["merged", "skipped"]
    reason: str = ""
    base: BaseModelRef
    adapter_hash: str


@dataclass(frozen=True)
class MergeResult(Artifact):
    """The merged model: live until it is stored, a folder afterwards, neither if skipped."""

    record: MergeRecord
    folder: Path | None = None
    model: "PreTrainedModel | None" = None
    processor: "ProcessorMixin | None" = None


def merge(adapter: Adapter, config: ModelConfig, enabled: bool) -> MergeResult:
    """Merge the adapter into a freshly loaded bf16 base at the recorded revision.

    Merging into the 4-bit weights would round the adapter away; see `enabled` to skip.
    """
    from transformers import AutoProcessor

    base = adapter.record.base
    if not enabled:
        record = MergeRecord(
            status="skipped",
            reason="merge.enabled is false",
            base=base,
            adapter_hash=adapter.content_hash,
        )
        return MergeResult(record=record)
    require_unchanged(base)
    model = load_model(base.id, base.commit, config, quantization={})
    merged = attach_adapter(model, adapter).merge_and_unload(safe_merge=True)
    return MergeResult(
        record=MergeRecord(status="merged", base=base, adapter_hash=adapter.content_hash),
        model=merged,
        processor=AutoProcessor.from_pretrained(adapter.folder),
    )
