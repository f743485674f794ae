"""How models with multimodal rope (Qwen2-VL and its heirs) number tokens, without their weights.

They have `get_rope_index`. Kind 0 of a position is the place in the text, which such a model reads
beside kinds 1 to 3: time, height and width of a piece of a picture.
"""

import copy
from typing import Any

import torch


def numbering(inner: Any) -> Any:
    """A model's `get_rope_index`, bound to a copy without weights that other processes and
    threads can hold; None if the model counts its tokens from 0 like any text."""
    if not hasattr(inner, "get_rope_index"):
        return None
    shell = copy.copy(inner)
    shell._modules, shell._parameters, shell._buffers = {}, {}, {}
    return shell.get_rope_index


def text_positions(mask: torch.Tensor) -> torch.Tensor:
    """Places in the text, from where the padding ends: [rows, tokens], as is the mask."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)


def prompt_positions(get_rope_index: Any, inputs: Any) -> torch.Tensor:
    """Positions of padded prompts, worked out on the CPU, where no row waits for a GPU.

    Args:
        get_rope_index: from `numbering`.
        inputs: what a processor made of the prompts.

    Returns:
        [4, rows, tokens].
    """
    mask = inputs["attention_mask"]
    text = text_positions(mask)[None]
    grids = {name: value for name, value in inputs.items() if "grid" in name}
    if not grids:
        return text.expand(4, -1, -1)
    axes, _ = get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        attention_mask=mask,
        **grids,
    )
    return torch.cat([text, axes])
