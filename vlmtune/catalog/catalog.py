"""The catalog as the pipeline hands it on: one Arrow table with undecoded pictures."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmtune.artifact import Artifact
from vlmtune.catalog.pictures import decode_picture

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from PIL.Image import Image

ROW_ID, PICTURES = "row_id", "images"
WHITE = "#ffffff"
HASH_BATCH = 256


@dataclass(frozen=True)
class Catalog(Artifact):
    """The rows of a catalog that can be trained on.

    Attributes:
        rows: columns `row_id`, `images` (a list of {"bytes", "path"} a row, undecoded, as the
            source has them) and one string column a text field of `data.columns`, cleaned.
        source: the folder or Hub id that the rows came from.
        version: content digest of the folder, or commit of the Hub data set.
        background: colour that transparent pictures are laid on when they are decoded.
        scratch: keeps the temporary folder alive that the Arrow table is mapped from.
    """

    rows: "Dataset"
    source: str
    version: str
    background: str = WHITE
    scratch: Any = field(default=None, repr=False, compare=False)

    def pictures(self, row: int) -> list[bytes]:
        """The encoded pictures of a row, as they stand in the catalog."""
        return [picture["bytes"] for picture in self.rows[row][PICTURES]]

    def open_pictures(self, row: int) -> list["Image"]:
        """The decoded pictures of a row, upright and in RGB."""
        return [decode_picture(data, background=self.background) for data in self.pictures(row)]

    def texts(self) -> "Dataset":
        """The rows without their pictures, which are costly to read along."""
        return self.rows.remove_columns(PICTURES)


def catalog_features(fields: Iterable[str]) -> "Features":
    """The columns of a catalog's table with these text fields."""
    from datasets import Features, Image, List, Value

    texts = {field: Value("string") for field in fields}
    return Features({ROW_ID: Value("string"), PICTURES: List(Image(decode=False)), **texts})


def hash_rows(batches: Iterable[dict[str, list[Any]]]) -> str:
    """SHA-256 over all columns of all rows, pictures by their bytes; 64 hex digits.

    It does not depend on how Arrow happens to chunk the table, so that equal rows are equal
    artifacts, whenever and wherever they were read.
    """
    digest = hashlib.sha256()
    for batch in batches:
        columns = sorted(batch)
        for values in zip(*(batch[column] for column in columns), strict=True):
            for column, value in zip(columns, values, strict=True):
                _update(digest, column)
                _update(digest, value)
    return digest.hexdigest()


def iterate_batches(dataset: "Dataset") -> Iterator[dict[str, list[Any]]]:
    """The rows in small batches, so that only a few pictures are in memory at a time."""
    yield from dataset.iter(batch_size=HASH_BATCH)


def _update(digest: Any, value: Any) -> None:
    """Feed one value, with its length before it so that neighbours cannot run together."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "bytes" in value[0]:
        for picture in value:
            _update(digest, picture["bytes"])
        value = len(value)
    data = value if isinstance(value, bytes) else repr(value).encode()
    digest.update(len(data).to_bytes(8, "big"))
    digest.update(data)
