"""Prompts without padding: one after the other in one row of tokens, as rows are in training."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch.nn.functional import pad

from vlmtune.models.positions import text_positions
from vlmtune.models.step_graph import TOKEN_TYPES

# Inputs with one value for each token of a prompt, beside the kinds of tokens.
BY_TOKEN = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class PromptPack:
    """Some prompts, all of each but its last token ready to be read.

    Attributes:
        padded: the whole prompts, padded on the left: ids and mask [rows, tokens], and positions
            [rows, tokens] or [kinds, rows, tokens].
        packed: what the model reads: ids [1, tokens], positions and pictures.
        bounds: [rows + 1], int32, where each prompt begins.
        longest: tokens of the longest in the pack.
        rows, places: [tokens], of each packed token in the padded prompts.
    """

    padded: dict[str, torch.Tensor]
    packed: dict[str, Any]
    bounds: torch.Tensor
    longest: int
    rows: torch.Tensor
    places: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Rows, and tokens of the longest."""
        return self.padded["input_ids"].shape

    def pinned(self) -> Self:
        """In memory that a GPU reads by itself."""
        return self._with(lambda each: each.pin_memory())

    def on(self, device: torch.device) -> Self:
        """On a device, without waiting for it."""
        return self._with(lambda each: each.to(device, non_blocking=True))

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        def changed(values: dict[str, Any]) -> dict[str, Any]:
            return {
                name: change(value) if isinstance(value, torch.Tensor) else value
                for name, value in values.items()
            }

        tensors = changed({name: getattr(self, name) for name in ("bounds", "rows", "places")})
        return replace(self, padded=changed(self.padded), packed=changed(self.packed), **tensors)


def pack_prompts(inputs: dict[str, Any]) -> PromptPack:
    """Leave out padding and last tokens.

    Args:
        inputs: encoded prompts, padded on the left; on the CPU, where picking the real tokens
            waits for nothing. Positions that they have not are those of the text.
    """
    mask = inputs["attention_mask"]
    inputs = {"position_ids": text_positions(mask), **inputs}
    real = mask.bool()
    real[:, -1] = False
    lengths = real.sum(dim=1)
    bounds = pad(lengths.cumsum(0), (1, 0)).int()
    packed = {
        name: value[..., real].unsqueeze(-2) if _by_token(name) else value
        for name, value in inputs.items()
        if name != "attention_mask"
    }
    rows, places = real.nonzero(as_tuple=True)
    padded = {name: inputs[name] for name in BY_TOKEN}
    return PromptPack(padded, packed, bounds, int(lengths.max()), rows, places)


def _by_token(name: str) -> bool:
    return name in BY_TOKEN or name.endswith(TOKEN_TYPES)
