"""What a model writes faster with, put in for a while and taken out again.

All of it computes what the model computes without: 4-bit weights are unpacked once instead of in
each step, norms and activations take one kernel instead of several, pictures go through the vision
tower together, and query heads that share a key read it together instead of each its own copy.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmtune.models.adapter import without_wrapper
from vlmtune.models.attention import VARLEN, varlen_attention
from vlmtune.models.kernels import fused_kernels
from vlmtune.models.memory import free_memory
from vlmtune.models.quantized import four_bit_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

GROUPED = "vlmtune_grouped_sdpa"
ROOM_FOR_UNPACKED = 0.5  # share of the free memory; the rest is for the rows
BOUNDS = "cu_seqlens"  # what vision towers call the bounds of the pictures they are given together


@contextmanager
def made_ready(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Within the block, the model writes faster; training it must wait."""
    core = without_wrapper(model)
    with ExitStack() as stack:
        stack.enter_context(unpacked_weights(core))
        if core.device.type == "cuda":
            for change in (fused_kernels, shared_reading, joint_pictures):
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
def shared_reading(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block, the decoder's attention copies no keys for a single new token."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    if before != "sdpa":
        yield  # the user's own choice
        return
    ALL_ATTENTION_FUNCTIONS.register(GROUPED, grouped_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED, sdpa_mask)
    config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = before


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA with the signature that transformers calls. With one new token a row, the heads that
    share a key take the place of tokens, so that no key is copied for each of them.

    Args:
        query: [rows, heads, tokens, head size]; key, value: the same with fewer heads.
        attention_mask: [rows, 1, tokens, keys] or None.

    Returns:
        [rows, tokens, heads, head size].
    """
    rows, heads, tokens, size = query.shape
    shared = heads // key.shape[1]
    if tokens > 1 or shared == 1 or (attention_mask is not None and attention_mask.shape[1] > 1):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, heads // shared, shared, size),
        key,
        value,
        attn_mask=attention_mask,
        scale=scaling,
    )
    return output.reshape(rows, 1, heads, value.shape[-1]), None


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
    ALL_ATTENTION_FUNCTIONS.register(VARLEN, varlen_attention)
    configs = list({id(config): config for config in towers}.values())
    for config in configs:
        config._attn_implementation = VARLEN
    try:
        yield
    finally:
        for config in configs:
            config._attn_implementation = "sdpa"
