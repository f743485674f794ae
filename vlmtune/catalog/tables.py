"""Rows as they stand in a csv, jsonl or parquet table, read a few at a time.

A row that is broken in itself (too many cells, no JSON) is handed on with a reason, so that it
gets its line in the ledger; a table that cannot be read at all is one clear error.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vlmtune.catalog.encodings import find_encoding
from vlmtune.catalog.ledger import Reason
from vlmtune.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
DELIMITERS = ",;\t|"
LONGEST_CELL = 16_000_000  # characters
ROWS_PEEKED = 1000  # of a jsonl table, to learn its columns
PARQUET_BATCH = 256


@dataclass(frozen=True)
class SourceRow:
    """One row as the source has it.

    Attributes:
        place: where it stands, for people: `metadata.csv row 17`.
        cells: column -> value; nested values as they are.
        broken: why the row cannot be read; None if it can.
    """

    place: str
    cells: dict[str, Any] = field(default_factory=dict)
    broken: Reason | None = None


def read_table(path: Path, encoding: str) -> tuple[list[str], Iterator[SourceRow]]:
    """The columns of a table and its rows, which are read as they are asked for.

    Raises:
        UserError: the table is empty, has a column twice or cannot be read; also while the rows
            are iterated.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix == ".parquet":
        columns, rows = _read_parquet(path)
    else:
        columns, rows = readers[path.suffix](path, encoding)
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} twice.", "Rename one of them.")
    return columns, rows


def _place(path: Path, number: int) -> str:
    """With the folder, as several sources may have tables of one name."""
    return f"{path.resolve().parent.name}/{path.name} row {number}"


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"cannot read {path}: {error}.", "Mend the file, or save it anew.")


# csv ------------------------------------------------------------------------------------------


def _read_csv(path: Path, encoding: str) -> tuple[list[str], Iterator[SourceRow]]:
    csv.field_size_limit(LONGEST_CELL)
    header_line = next(filter(str.strip, _lines(path, encoding)), "")
    if not header_line:
        raise UserError(f"the catalog {path} is empty.", "Add a header line and rows.")
    delimiter = max(DELIMITERS, key=header_line.count)
    records = csv.reader(_lines(path, encoding), delimiter=delimiter, strict=True)
    try:
        columns = next(cells for cells in records if any(map(str.strip, cells)))
    except csv.Error as error:
        raise _unreadable(path, error) from None
    return columns, _csv_rows(path, columns, records)


def _csv_rows(path: Path, columns: list[str], records: Any) -> Iterator[SourceRow]:
    number = 0
    try:
        for cells in records:
            if not cells:
                continue  # an empty line is no row, to csv as to spreadsheets
            number += 1
            place = _place(path, number)
            if len(cells) == len(columns):
                yield SourceRow(place, dict(zip(columns, cells, strict=True)))
                continue
            reason = Reason(
                "ragged_row",
                f"{len(cells)} cells, the header has {len(columns)} (line {records.line_num}); "
                "a cell with a comma or a line break must stand in quotes",
            )
            yield SourceRow(place, _ragged_cells(columns, cells), reason)
    except csv.Error as error:
        raise UserError(
            f"cannot read {path}: {error} (after row {number}, line {records.line_num}).",
            "A quote that is opened must be closed; a quote inside quotes is written twice.",
        ) from None


def _ragged_cells(columns: list[str], cells: list[str]) -> dict[str, Any]:
    """All cells, none lost: those without a column of their own under their number."""
    names = [*columns, *(f"cell {number}" for number in range(len(columns) + 1, len(cells) + 1))]
    return dict(zip(names, cells, strict=False))


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a text file, without a byte-order mark."""
    wide = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    try:
        with path.open(encoding="utf-8-sig" if wide else encoding, newline="") as file:
            yield from file
    except LookupError:
        raise UserError(
            f"there is no encoding {encoding!r}.", "Set data.encoding to utf-8, cp1252 or the like."
        ) from None
    except UnicodeError as error:
        raise UserError(
            f"cannot read {path}: it is no {encoding} text ({error}).",
            f"Save it as UTF-8, or set data.encoding{_likely_encoding(path)}.",
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _likely_encoding(path: Path) -> str:
    try:
        return f" (it looks like {find_encoding(path)})"
    except UserError:
        return ""


# jsonl ----------------------------------------------------------------------------------------


def _read_jsonl(path: Path, encoding: str) -> tuple[list[str], Iterator[SourceRow]]:
    seen: dict[str, None] = {}
    count = 0
    for row in islice(_jsonl_rows(path, encoding), ROWS_PEEKED):
        seen |= dict.fromkeys(row.cells)
        count += 1
    if not count:
        raise UserError(f"the catalog {path} is empty.", "Add a row a line.")
    return list(seen), _jsonl_rows(path, encoding)


def _jsonl_rows(path: Path, encoding: str) -> Iterator[SourceRow]:
    for number, line in enumerate(filter(str.strip, _lines(path, encoding)), 1):
        place = _place(path, number)
        try:
            cells = json.loads(line, object_pairs_hook=_cells_once)
            if not isinstance(cells, dict):
                raise ValueError("an object in braces is expected")
        except (ValueError, RecursionError) as error:
            reason = Reason("broken_json", f"the line is no JSON object: {error}")
            yield SourceRow(place, {"line": line.rstrip("\n")}, reason)
        else:
            yield SourceRow(place, cells)


def _cells_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, value in pairs:
        if name in cells:
            raise ValueError(f"the key {name!r} is given twice")
        cells[name] = value
    return cells


# parquet --------------------------------------------------------------------------------------


def _read_parquet(path: Path) -> tuple[list[str], Iterator[SourceRow]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    return file.schema_arrow.names, _parquet_rows(path, file)


def _parquet_rows(path: Path, file: Any) -> Iterator[SourceRow]:
    import pyarrow

    number = 0
    try:
        for batch in file.iter_batches(batch_size=PARQUET_BATCH):
            for cells, broken in arrow_rows(batch):
                number += 1
                yield SourceRow(_place(path, number), cells, broken)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def arrow_rows(batch: Any) -> Iterator[tuple[dict[str, Any], Reason | None]]:
    """The cells of each row of an Arrow table or batch.

    Of a row with values that Python has no word for (text that is no UTF-8, a date past the year
    9999) there are the other cells, and a reason.
    """
    try:
        yield from ((cells, None) for cells in batch.to_pylist())
    except (ValueError, OverflowError):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for number in range(batch.num_rows):
            yield _arrow_row({name: column[number] for name, column in columns.items()})


def _arrow_row(values: dict[str, Any]) -> tuple[dict[str, Any], Reason | None]:
    cells, broken = {}, None
    for name, value in values.items():
        try:
            cells[name] = value.as_py()
        except (ValueError, OverflowError) as error:
            cells[name] = None
            broken = Reason("unreadable_cell", f"the column {name!r} cannot be read: {error}")
    return cells, broken
