"""Can this model be packed? Tried on its own first rows, not looked up by its name."""

import inspect
from typing import TYPE_CHECKING, Any

import torch

from vlmtune.encoding import EncodedRow, join_pictures
from vlmtune.models.vision import FEATURES, PICTURE_INPUT, PictureEncoder
from vlmtune.training.packing import Positions, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Relative distances of last hidden states. Kernels of another order of sums differ by some
# percent in bf16; a model that ignores the bounds or the positions differs by far more.
TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.1, torch.float32: 1e-3}
LEAK = 1e-2  # of what a sample feels of the one before it, which should be nothing
# Models that take it let the tokens of a picture look ahead, which packs cannot say.
BLOCKS = "token_type_ids"


def why_not_packable(
    model: "PreTrainedModel", pictures: PictureEncoder, positions: Positions, rows: list[EncodedRow]
) -> str | None:
    """Run two rows as a pack and alone, and the pack again with another first row.

    Args:
        model: without PEFT's wrapper, with the attention that training will use.
        rows: two encoded rows.

    Returns:
        What speaks against packing; None if nothing does.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _compare(model, pictures, positions, rows)
    except Exception as error:  # any refusal of the model means: train it padded
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        model.train(was_training)


def _compare(
    model: "PreTrainedModel", pictures: PictureEncoder, positions: Positions, rows: list[EncodedRow]
) -> str | None:
    if BLOCKS in inspect.signature(type(model.base_model).forward).parameters:
        return f"the model's attention depends on {BLOCKS}"
    packed = _packed_states(model, pictures, positions, rows)
    tolerance = TOLERANCE[model.dtype]
    for row, states in zip(rows, packed, strict=True):
        distance = _distance(states, _own_states(model, row))
        if not distance <= tolerance:
            return f"a packed sample differs from the same sample alone by {distance:.1%}"
    if (leak := _picture_leak(model, pictures, rows)) > LEAK:
        return f"a picture feels the one before it ({leak:.1%})"
    other = EncodedRow(rows[0].input_ids.flip(0), rows[0].labels, rows[0].token_types, {})
    plain = [EncodedRow(row.input_ids, row.labels, None, {}) for row in rows]
    before = _packed_states(model, pictures, positions, plain)[1]
    after = _packed_states(model, pictures, positions, [other, plain[1]])[1]
    leak = _distance(after, before)
    return None if leak <= LEAK else f"a sample feels the one before it ({leak:.1%})"


def _packed_states(
    model: "PreTrainedModel", pictures: PictureEncoder, positions: Positions, rows: list[EncodedRow]
) -> list[torch.Tensor]:
    """Last hidden states of a pack, sample by sample."""
    batch: dict[str, Any] = pack(
        [
            {"input_ids": row.input_ids, "labels": row.labels, "positions": positions(row)}
            for row in rows
        ]
    )
    del batch["labels"]
    inputs = join_pictures([row.pictures for row in rows])
    if inputs:
        batch[PICTURE_INPUT] = pictures.placeholder()
    with pictures.given(_on(model, inputs) or None):
        states = model.base_model(**_on(model, batch), use_cache=False).last_hidden_state
    return list(states[0].split([len(row.input_ids) for row in rows]))


def _picture_leak(
    model: "PreTrainedModel", pictures: PictureEncoder, rows: list[EncodedRow]
) -> float:
    """How much the last picture's features change with the pictures of the first row."""
    first, last = (row.pictures for row in rows)
    if not first or not last:
        return 0.0
    other = {**first, PICTURE_INPUT: -first[PICTURE_INPUT]}

    def last_features(before: dict[str, torch.Tensor]) -> torch.Tensor:
        with pictures.given(_on(model, join_pictures([before, last]))):
            return list(pictures.inner.get_image_features()[FEATURES])[-1]

    return _distance(last_features(other), last_features(first))


def _own_states(model: "PreTrainedModel", row: EncodedRow) -> torch.Tensor:
    """Last hidden states of a row alone, as transformers would run it."""
    batch: dict[str, Any] = {"input_ids": row.input_ids[None], **row.pictures}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if row.token_types is not None:
        batch["mm_token_type_ids"] = row.token_types[None]
    return model.base_model(**_on(model, batch), use_cache=False).last_hidden_state[0]


def _on(model: "PreTrainedModel", batch: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.float(), other.float()
    return float((one - other).norm() / other.norm())
