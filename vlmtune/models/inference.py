"""What a model writes faster with, put in for a while and taken out again.

All of it computes what the model computes without: 4-bit weights are unpacked once instead of in
each step, norms, activations and rotary embeddings take one kernel instead of several, pictures go
through the vision tower together, and query heads that share a key read it together instead of
each its own copy.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from vlmtune.models.adapter import without_wrapper
from vlmtune.models.attention import packed_attention
from vlmtune.models.decode_attention import shared_reading
from vlmtune.models.kernels import fused_kernels
from vlmtune.models.memory import free_memory
from vlmtune.models.quantized import four_bit_layers
from vlmtune.models.tower_kernels import fused_tower

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

ROOM_FOR_UNPACKED = 0.5  # share of the free memory; the rest is for the rows
BOUNDS = "cu_seqlens"  # what vision towers call the bounds of the pictures they are given together


@contextmanager
def made_ready(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Within the block, the model writes faster; training it must wait."""
    core = without_wrapper(model)
    with ExitStack() as stack:
        stack.enter_context(unpacked_weights(core))
        if core.device.type == "cuda":
            for change in (fused_kernels, shared_reading, joint_pictures, fused_tower):
                stack.enter_context(change(core))
        yield


@contextmanager
def unpacked_weights(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block, 4-bit layers are plain ones, if the memory has room for them: the same
    numbers, bit for bit, as those that each forward would unpack."""
    packed = four_bit_layers(model)
    needed = sum(2 * child.in_features * child.out_features for _, _, child in packed)
    if needed > ROOM_FOR_UNPACKED * free_memory(model.device):
        logger.info("4-bit weights stay packed: unpacked they would take %.1f GiB", needed / 2**30)
        packed = []
    for module, name, child in packed:
        setattr(module, name, Unpacked(child))
    try:
        yield
    finally:
        for module, name, child in packed:
            setattr(module, name, child)


class Unpacked(torch.nn.Module):
    """A 4-bit linear layer with its weights unpacked."""

    weight: torch.Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        from bitsandbytes.functional import dequantize_4bit

        values = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        self.register_buffer("weight", values.to(layer.compute_dtype or values.dtype))
        self.bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], in x's dtype."""
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return torch.nn.functional.linear(x.to(self.weight.dtype), self.weight, bias).to(x.dtype)


@contextmanager
def joint_pictures(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block, a vision tower that is told the bounds of its pictures attends to all of
    them in one product; transformers' SDPA takes them one by one in each layer."""
    towers = [
        module.config
        for module in model.modules()
        if BOUNDS in inspect.signature(type(module).forward).parameters
        and getattr(getattr(module, "config", None), "_attn_implementation", "") == "sdpa"
    ]
    with ExitStack() as stack:
        for config in towers:
            stack.enter_context(packed_attention(config))
        yield
