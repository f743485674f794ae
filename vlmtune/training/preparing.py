"""Everything that is done once before training: rows encoded, picture features computed.

Epochs then read token ids and features from disk: no picture is decoded again, and the vision
tower rests.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vlmtune.arrow_file import write_rows
from vlmtune.encoding import CatalogCollator, encode_row, join_pictures
from vlmtune.models.vision import FEATURES, PICTURE_INPUT, PictureEncoder, PictureFeatures
from vlmtune.training.feature_cache import FeatureCache, picture_key
from vlmtune.training.packing import Positions

if TYPE_CHECKING:
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)

# Of `pixel_values`, which go through the vision tower together. On a CPU the first few pictures
# are also encoded one by one, see `_FeatureWriter._encode`.
VALUES_AT_ONCE, FIRST_VALUES_ON_CPU = 20_000_000, 300_000
WRITERS = 4


@dataclass
class RowEncoder:
    """Encodes one row in a worker process; its pictures only if their features are unknown."""

    collator: CatalogCollator
    positions: Positions
    cache: FeatureCache | None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The encoded row, for a DataLoader with batches of one row."""
        (row,) = rows
        keys = [picture_key(picture) for picture in row["images"]]
        encoded = encode_row(self.collator, row)
        known = self.cache is None or all(key in self.cache for key in keys)
        return {
            "input_ids": encoded.input_ids.int().numpy(),
            "labels": encoded.labels.int().numpy(),
            "positions": self.positions(encoded).flatten().int().numpy(),
            "images": keys,
            "pictures": {} if known else encoded.pictures,
        }


def _features() -> "Features":
    from datasets import Features, List, Value

    numbers = List(Value("int32"))
    return Features(
        {
            "side": Value("string"),
            "place": Value("int64"),
            "input_ids": numbers,
            "labels": numbers,
            "positions": numbers,
            "images": List(Value("string")),
        }
    )


def prepare_rows(
    rows: "Dataset",
    side: str,
    encoder: RowEncoder,
    pictures: PictureEncoder,
    path: Path,
    workers: int,
    show_progress: bool,
) -> "Dataset":
    """Encode each row once and store it; compute the picture features that the cache lacks.

    Args:
        rows: with `prompt`, `completion` and `images`.
        side: a name for these rows, kept with each of them.
        path: of the Arrow file to write.
        workers: processes that decode and encode.

    Returns:
        A table mapped from the file: `input_ids`, `labels` and `positions` [kinds * tokens];
        `images` holds the key of each picture; `place` is the row's place in `rows`.
    """
    loader = DataLoader(
        rows,
        batch_size=1,
        collate_fn=encoder,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
    )
    bar = tqdm(loader, f"preparing {side}", disable=not show_progress, unit=" rows")

    def records() -> Iterator[dict[str, Any]]:
        with _FeatureWriter(pictures, encoder.cache) as writer:
            for place, row in enumerate(bar):
                writer.add(row["images"], row.pop("pictures"))
                yield {"side": side, "place": place, **row}

    return write_rows(path, _features(), records())


# Keys of a row's pictures, and what the processor made of them.
WaitingRow = tuple[list[str], dict[str, torch.Tensor]]


class _FeatureWriter:
    """Collects pictures until the vision tower is well filled, and stores their features while
    the next ones are computed."""

    def __init__(self, pictures: PictureEncoder, cache: FeatureCache | None) -> None:
        self.pictures, self.cache = pictures, cache
        self.waiting: list[WaitingRow] = []
        self.values = 0
        self.tried = pictures.device.type == "cuda"
        self.limit = VALUES_AT_ONCE if self.tried else FIRST_VALUES_ON_CPU
        self.stored: list[Future[bool]] = []

    def __enter__(self) -> "_FeatureWriter":
        self.pool = ThreadPoolExecutor(WRITERS)
        return self

    def add(self, keys: list[str], inputs: dict[str, torch.Tensor]) -> None:
        """Take the pictures of a row; nothing to do for those that are known."""
        if self.cache is None:
            return
        if not inputs:
            for key in keys:
                self.cache.touch(key)
            return
        self.waiting.append((keys, inputs))
        self.values += inputs[PICTURE_INPUT].numel()
        if self.values >= self.limit:
            self.flush()

    def flush(self) -> None:
        """Compute what is waiting."""
        if not self.waiting:
            return
        assert self.cache is not None
        keys = [key for row_keys, _ in self.waiting for key in row_keys]
        features = self._encode(self.waiting)
        if not self.tried:
            alone = [each for row in self.waiting for each in self._encode([row])]
            self.limit = VALUES_AT_ONCE if _same_bits(features, alone) else 1
            self.tried, features = True, alone
        for key, each in zip(keys, to_host(features), strict=True):
            self.stored.append(self.pool.submit(self.cache.write, key, each))
        self.waiting, self.values = [], 0
        while len(self.stored) > 256:  # a slow disk holds the rest up, not the memory
            self.stored.pop(0).result()

    def _encode(self, rows: list[WaitingRow]) -> list[PictureFeatures]:
        """Features of all pictures of some rows together.

        On a CPU, where runs agree bit for bit whichever pictures they find in the cache, only if
        it has given the first pictures the same bits as each of them alone.
        """
        inputs = join_pictures([inputs for _, inputs in rows])
        device = self.pictures.device
        on_device = {name: each.to(device, non_blocking=True) for name, each in inputs.items()}
        return self.pictures.encode(on_device, sum(len(keys) for keys, _ in rows))

    def __exit__(self, failed: Any, *_: Any) -> None:
        try:
            if failed is None:
                self.flush()
                for each in self.stored:
                    each.result()
        finally:
            self.pool.shutdown(cancel_futures=True)


def _same_bits(some: list[PictureFeatures], others: list[PictureFeatures]) -> bool:
    return all(
        torch.equal(one[name], other[name])
        for one, other in zip(some, others, strict=True)
        for name in one
    )


def to_host(features: list[PictureFeatures]) -> list[PictureFeatures]:
    """Copies in the host's memory, few large transfers instead of many small ones."""
    sizes = [len(each[FEATURES]) for each in features]
    joined = {name: torch.cat([each[name] for each in features]).cpu() for name in features[0]}
    pieces = {name: tensor.split(sizes) for name, tensor in joined.items()}
    return [{name: pieces[name][at] for name in pieces} for at in range(len(sizes))]
