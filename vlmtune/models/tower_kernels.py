"""What a vision tower computes value by value, in one kernel each; its patches in one product."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper
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
    in one kernel each, and embeds patches in one product."""
    homes = {sys.modules[type(module).__module__] for module in model.modules()}
    ropes = [(home, getattr(home, VISION_ROPE)) for home in homes if hasattr(home, VISION_ROPE)]
    activations = [each for each in model.modules() if type(each) is QuickGELUActivation]
    quick_gelu = tried(fused_quick_gelu, partial(QuickGELUActivation.forward, None))
    for home, own in ropes:
        setattr(home, VISION_ROPE, tried(fused_vision_rope, own))
    for activation in activations:
        activation.forward = quick_gelu
    convolutions = [each for each in model.modules() if type(each) is torch.nn.Conv3d]
    for convolution in convolutions:
        in_one = update_wrapper(partial(embed_patches, convolution), embed_patches)
        convolution.forward = tried(in_one, convolution.forward)
    try:
        yield
    finally:
        for home, own in ropes:
            setattr(home, VISION_ROPE, own)
        for changed in [*activations, *convolutions]:
            del changed.forward


def embed_patches(convolution: torch.nn.Conv3d, patches: torch.Tensor) -> torch.Tensor:
    """A convolution whose kernel covers all of its input is a product of matrices. cuDNN convolves
    all the same, with a kernel that takes 6 ms for some 50,000 patches on an H200.

    Args:
        patches: [patches, channels, frames, height, width].

    Returns:
        [patches, embedding, 1, 1, 1].
    """
    weight = convolution.weight
    if patches.shape[1:] != weight.shape[1:]:
        return torch.nn.Conv3d.forward(convolution, patches)
    product = torch.nn.functional.linear(patches.flatten(1), weight.flatten(1), convolution.bias)
    return product[..., None, None, None]


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
