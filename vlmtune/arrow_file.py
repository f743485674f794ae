"""Tables written to disk row by row and mapped into memory, so that their size does not matter."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from datasets.arrow_writer import ArrowWriter

ROWS_IN_MEMORY = 64


@contextmanager
def arrow_writer(path: Path, features: "Features") -> "Iterator[ArrowWriter]":
    """A writer whose file is whole once the block is left without an error."""
    from datasets.arrow_writer import ArrowWriter

    with ArrowWriter(path=str(path), features=features, writer_batch_size=ROWS_IN_MEMORY) as writer:
        yield writer
        writer.finalize()  # without it the last rows would be missing


def write_rows(path: Path, features: "Features", rows: Iterable[dict[str, Any]]) -> "Dataset":
    """Write rows as they come and map the table into memory."""
    from datasets import Dataset

    with arrow_writer(path, features) as writer:
        for row in rows:
            writer.write(row)
    return Dataset.from_file(str(path))


def stream_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read a table that is looked at once, without mapping it into memory."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
        for batch in batches:
            yield from batch.to_pylist()
