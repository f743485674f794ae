"""What a vision tower computes value by value, in one kernel each."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from transformers.activations import QuickGELUActivation

from vlmtune.models.kernels import fused_rope, tried

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VISION_ROPE = "apply_rotary_pos_emb_vision"  # what transformers calls it in Qwen's towers


@contextmanager
def fused_tower(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block, the vision tower rotates queries and keys, and applies the quick GELU,
    in one kernel each."""
    homes = {sys.modules[type(module).__module__] for module in model.modules()}
    ropes = [(home, getattr(home, VISION_ROPE)) for home in homes if hasattr(home, VISION_ROPE)]
    activations = [each for each in model.modules() if type(each) is QuickGELUActivation]
    quick_gelu = tried(fused_quick_gelu, partial(QuickGELUActivation.forward, None))
    for home, own in ropes:
        setattr(home, VISION_ROPE, tried(fused_vision_rope, own))
    for activation in activations:
        activation.forward = quick_gelu
    try:
        yield
    finally:
        for home, own in ropes:
            setattr(home, VISION_ROPE, own)
        for activation in activations:
            del activation.forward


def fused_vision_rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries and keys of [patches, heads, head size] by angles of [patches, head size]."""
    q, k = (part.transpose(0, 1)[None] for part in (q, k))
    q, k = fused_rope(q, k, cos[None], sin[None])
    return q[0].transpose(0, 1), k[0].transpose(0, 1)


def fused_quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x)."""
    from vlmtune.models.triton_kernels import quick_gelu

    return quick_gelu(x)
