"""From encoded rows to one packed sequence without padding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlmtune.encoding import CatalogCollator, EncodedRow, encode_row, join_pictures
from vlmtune.models.positions import numbering
from vlmtune.training.feature_cache import FeatureCache

if TYPE_CHECKING:
    from datasets import Dataset

# Keys of a pack that the trainer takes out before the model's forward.
PICTURES, FEATURES = "pictures", "features"
DAMAGED = "damaged"  # how many files in the cache were, when the pack was made

Positions = Callable[[EncodedRow], torch.Tensor]
RowPictures = tuple[int, dict[str, torch.Tensor]]  # how many, and what the processor made of them


def position_counter(inner: Any) -> Positions:
    """How this model numbers the tokens of a sample: [kinds, tokens], with one kind or, for
    multimodal rope, four."""
    get_rope_index = numbering(inner)
    if get_rope_index is None:
        return lambda row: torch.arange(len(row.input_ids))[None]

    def multimodal(row: EncodedRow) -> torch.Tensor:
        text = torch.arange(len(row.input_ids))[None]
        if row.token_types is None or not row.pictures:
            return text.expand(4, -1)
        grids = {name: value for name, value in row.pictures.items() if "grid" in name}
        axes, _ = get_rope_index(
            row.input_ids[None], mm_token_type_ids=row.token_types[None], **grids
        )
        return torch.cat([text, axes[:, 0]])

    return multimodal


def pack(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lay samples one after the other.

    Args:
        rows: `input_ids`, `labels` [tokens] and `positions` [kinds * tokens] of each sample.

    Returns:
        `input_ids`, `labels` of shape [1, tokens], `position_ids` of [kinds, 1, tokens] or, for
        one kind, [1, tokens], and the samples' bounds by flash-attn's names.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    positions = [
        torch.as_tensor(row["positions"]).reshape(-1, length)
        for row, length in zip(rows, lengths, strict=True)
    ]
    position_ids = torch.cat(positions, dim=1).long()
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return {
        "input_ids": torch.cat([torch.as_tensor(row["input_ids"]) for row in rows]).long()[None],
        "labels": torch.cat([torch.as_tensor(row["labels"]) for row in rows]).long()[None],
        "position_ids": position_ids[:, None] if len(position_ids) > 1 else position_ids,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


@dataclass
class PackCollator:
    """Makes a pack of prepared rows, with features from the cache or, where there is none, with
    the pictures themselves. It runs in the input workers.

    Attributes:
        collator: encodes rows whose pictures have to be encoded anew.
        sources: the rows with their pictures, by the name of their side.
        cache: of picture features; None if they change while training.
        alone: pictures go through the vision tower row by row, as for the cache on a CPU, where
            rows that go through it together change each other's bits.
    """

    collator: CatalogCollator
    sources: "dict[str, Dataset]"
    cache: FeatureCache | None
    alone: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pack the rows of one batch."""
        batch = pack(rows)
        keys = [key for row in rows for key in row["images"]]
        if not keys:
            return batch
        features = [self.cache.read(key) for key in keys] if self.cache else [None]
        if all(each is not None for each in features):
            batch[FEATURES] = _by_name(features)
        else:
            batch[PICTURES] = self._encode_pictures(rows)
            if self.cache:
                batch[DAMAGED], self.cache.damaged = self.cache.damaged, 0
        return batch

    def _encode_pictures(
        self, rows: list[dict[str, Any]]
    ) -> dict[str, torch.Tensor] | list[RowPictures]:
        originals = (self.sources[row["side"]][row["place"]] for row in rows if row["images"])
        pictures = [
            (len(row["images"]), encode_row(self.collator, row).pictures) for row in originals
        ]
        return pictures if self.alone else join_pictures([inputs for _, inputs in pictures])


def _by_name(features: list[Any]) -> dict[str, Any]:
    """Few large tensors instead of many small ones: they reach the GPU in one copy each."""
    sizes = [len(next(iter(each.values()))) for each in features]
    return {
        "sizes": sizes,
        **{name: torch.cat([each[name] for each in features]) for name in features[0]},
    }


def one_by_one(features: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The reverse of what the collator did to the features, as views."""
    sizes = features["sizes"]
    split = {name: each.split(sizes) for name, each in features.items() if name != "sizes"}
    return [{name: pieces[at] for name, pieces in split.items()} for at in range(len(sizes))]
