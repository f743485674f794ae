"""The 4-bit base model: quantised once, stored, and loaded in place ever after."""

import ctypes
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtune.artifact import Artifact
from vlmtune.config.model import ModelConfig
from vlmtune.errors import UserError
from vlmtune.models.base_model import BaseModelRef, require_unchanged
from vlmtune.models.processor import load_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


@dataclass(frozen=True)
class QuantizedModel(Artifact):
    """A quantised base model with its processor.

    Attributes:
        base: which model was quantised.
        quantization: the BitsAndBytesConfig options it was quantised with.
        folder: where it is stored; None while it is only in memory.
        model, processor: the live objects; None until `load` or after storing.
    """

    base: BaseModelRef
    quantization: dict[str, Any]
    folder: Path | None = None
    model: "PreTrainedModel | None" = None
    processor: "ProcessorMixin | None" = None

    def load(self, config: ModelConfig) -> "tuple[PreTrainedModel, ProcessorMixin]":
        """The live model and processor, read from the folder they are stored in."""
        if self.folder is None:
            assert self.model is not None and self.processor is not None
            return self.model, self.processor
        return load_model(str(self.folder), None, config, {}), load_processor(
            str(self.folder), None, config
        )


def require_device(device: str) -> None:
    """Raise UserError where the config insists on a GPU that is not there."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "model.device is cuda, but there is no usable GPU here.",
            "Run on a machine with an NVIDIA GPU; to try the pipeline on a CPU: make finetune.",
        )


def pick_device(device: str) -> str:
    """The torch device that `model.device` stands for on this machine."""
    import torch

    require_device(device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def quantize(
    base: BaseModelRef, config: ModelConfig, quantization: dict[str, Any]
) -> QuantizedModel:
    """Load the base model and quantise it on the way; its processor gets the picture limits."""
    require_unchanged(base)
    return QuantizedModel(
        base=base,
        quantization=quantization,
        model=load_model(base.id, base.commit, config, quantization),
        processor=load_processor(base.id, base.commit, config),
    )


def load_model(
    name: str, commit: str | None, config: ModelConfig, quantization: dict[str, Any]
) -> "PreTrainedModel":
    """Load a vision-language model in bf16, quantised if options are given.

    An already quantised folder needs no options: they stand in its own config.
    """
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    release_unused_memory()
    options: dict[str, Any] = {}
    if quantization:
        options["quantization_config"] = BitsAndBytesConfig(**quantization)
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    model = AutoModelForImageTextToText.from_pretrained(
        name,
        revision=commit,
        dtype=torch.bfloat16,
        device_map={"": pick_device(config.device)},
        trust_remote_code=config.trust_remote_code,
        **options,
    )
    _keep_4bit_weights_as_they_are(model)
    return model


def release_unused_memory() -> None:
    """Give back what an earlier model in this process held: two 7B models do not fit on one card,
    or into the memory of a machine that has one."""
    import torch

    gc.collect()
    # Freed weights of up to 32 MB each stay in glibc's heap until it is trimmed.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def four_bit_layers(model: Any) -> list[tuple[Any, str, Any]]:
    """The 4-bit linear layers in a module, those below an adapter too: (parent, name, layer)."""
    from bitsandbytes.nn import Linear4bit

    return [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) is Linear4bit
    ]


def _keep_4bit_weights_as_they_are(model: "PreTrainedModel") -> None:
    """On CPUs with AVX512_BF16, bitsandbytes repacks the weights at the first forward without
    gradients; training after it crashes and merging after it destroys the model."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
