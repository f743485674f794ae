"""The catalog as the pipeline hands it on: one Arrow table with undecoded pictures."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmtune.artifact import Artifact

if TYPE_CHECKING:
    from datasets import Dataset

ROW_ID = "row_id"
HASH_BATCH = 256


@dataclass(frozen=True)
class Catalog(Artifact):
    """Rows of a catalog.

    Attributes:
        rows: columns `row_id`, `image` ({"bytes", "path"}, undecoded) and one string column a
            field of `data.columns`.
        source: the folder or Hub id that the rows came from.
        version: content digest of the folder, or commit of the Hub data set.
        scratch: keeps the temporary folder alive that the Arrow table is mapped from.
    """

    rows: "Dataset"
    source: str
    version: str
    scratch: Any = field(default=None, repr=False, compare=False)

    def picture(self, row: int) -> bytes:
        """The encoded picture of a row, as it stands in the catalog."""
        return self.rows[row]["image"]["bytes"]


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
    if isinstance(value, dict) and "bytes" in value:
        value = value["bytes"]
    data = value if isinstance(value, bytes) else repr(value).encode()
    digest.update(len(data).to_bytes(8, "big"))
    digest.update(data)
