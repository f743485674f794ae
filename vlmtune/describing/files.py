"""The described catalog as files: csv for spreadsheets, jsonl and Parquet for machines."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtune.catalog.ledger import spreadsheet_safe

if TYPE_CHECKING:
    from pyarrow import Table

BATCH = 1000
LISTS = {"flags": " ", "problems": "; "}  # columns that are lists, and how a csv joins them


def write_files(table: "Table", folder: Path) -> list[Path]:
    """Write the table in all formats; each file is whole or not there.

    In the csv a text that a spreadsheet would take for a formula gets an apostrophe before it.

    Returns:
        The files: `descriptions.csv`, `.jsonl` and `.parquet`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[Table, Path], None]] = {
        "csv": _write_csv,
        "jsonl": _write_jsonl,
        "parquet": _write_parquet,
    }
    paths = []
    for kind, write in writers.items():
        path = folder / f"descriptions.{kind}"
        with replaced(path) as scratch:
            write(table, scratch)
        paths.append(path)
    return paths


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` once the block is left without an error."""
    scratch = path.with_name(f".{path.name}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def records_of(table: "Table") -> Iterator[dict[str, Any]]:
    """The rows one by one, with few of them in memory as Python objects."""
    for batch in table.to_batches(max_chunksize=BATCH):
        yield from batch.to_pylist()


def _write_csv(table: "Table", path: Path) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # the mark is for Excel
        writer = csv.DictWriter(file, table.column_names)
        writer.writeheader()
        writer.writerows(
            {name: _cell(name, value) for name, value in row.items()} for row in records_of(table)
        )


def _cell(name: str, value: Any) -> Any:
    if name in LISTS:
        value = LISTS[name].join(value)
    return spreadsheet_safe(value) if isinstance(value, str) else value


def _write_jsonl(table: "Table", path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in records_of(table):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(table: "Table", path: Path) -> None:
    from pyarrow.parquet import write_table

    write_table(table, path)
