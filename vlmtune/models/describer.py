"""The model that describes a new catalog: merged, or the 4-bit base with its adapter."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict

from vlmtune.artifact import Artifact
from vlmtune.config.model import ModelConfig
from vlmtune.models.adapter import Adapter, attach_adapter
from vlmtune.models.merge_record import MergeResult
from vlmtune.models.processor import load_processor
from vlmtune.models.quantized import QuantizedModel, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


class ChosenModel(BaseModel):
    """Which trained model is meant, and where its artifacts are.

    Attributes:
        run: name of the run that made it.
        artifacts: `merged_model`, `quantized_model` and `adapter` -> id in the artifact store.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    artifacts: dict[str, str]


@dataclass(frozen=True)
class Describer(Artifact):
    """A trained model that is not loaded yet.

    Attributes:
        run: name of the run that made it.
        merged: the merged model, or word that there is none.
        quantized, adapter: the two that stand in for it; None if it is there.
    """

    run: str
    merged: MergeResult
    quantized: QuantizedModel | None = None
    adapter: Adapter | None = None

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "merged model" if self.merged.folder else "4-bit model with its adapter"

    @property
    def name(self) -> str:
        """What it is, where it is from, and the beginning of the adapter's hash."""
        return f"{self.kind} of {self.run} (adapter {self.merged.record.adapter_hash[:12]})"

    @property
    def identity(self) -> str:
        """What decides its weights: two models of one identity write the same."""
        record = self.merged.record
        parts = [self.kind, record.base.revision, record.adapter_hash]
        if self.quantized:
            parts.append(json.dumps(self.quantized.quantization, sort_keys=True, default=str))
        return "|".join(parts)


class LoadedDescriber(NamedTuple):
    """A model ready to describe, and what it is."""

    model: "PreTrainedModel"
    processor: "ProcessorMixin"
    name: str


def load_describer(describer: Describer, config: ModelConfig) -> LoadedDescriber:
    """Load a trained model with its processor.

    Args:
        config: on which device and with what picture limits.
    """
    if describer.merged.folder:
        folder = str(describer.merged.folder)
        model = load_model(folder, None, config, quantization={})
        return LoadedDescriber(model, load_processor(folder, None, config), describer.name)
    assert describer.quantized is not None and describer.adapter is not None
    base, processor = describer.quantized.load(config)
    return LoadedDescriber(attach_adapter(base, describer.adapter), processor, describer.name)
