"""The same rows in all three formats, whole or not there."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import read_table

from vlmtune.describing.files import replaced, write_files
from vlmtune.describing.results import table_schema

ROWS = [
    {
        "row_id": "a",
        "place": "shop/metadata.csv row 1",
        "name": 'Mug "No 1", blue',
        "fields.model": "M-1",
        "description": "A mug.\nFor two: 杯子 🫖",
        "flags": [],
        "problems": [],
        "model": "merged model",
        "seconds": 0.25,
    },
    {
        "row_id": "b",
        "place": "shop/metadata.csv row 2",
        "name": "=HYPERLINK(1)",
        "fields.model": "",
        "description": "-3 % off",
        "flags": ["html", "length"],
        "problems": ["HTML: '<b>'", "3 characters, at least 9 are wanted"],
        "model": "merged model",
        "seconds": 0.5,
    },
]


@pytest.fixture
def table() -> Any:
    """Two rows, the second with flags and with texts that a spreadsheet takes for formulas."""
    return pyarrow.Table.from_pylist(ROWS, schema=table_schema(["name", "model"]))


def test_formats_hold_the_same_rows(table: Any, tmp_path: Path) -> None:
    """jsonl and Parquet keep every text as it is; the csv is safe in a spreadsheet."""
    paths = write_files(table, tmp_path / "run")
    assert [path.name for path in paths] == [
        f"descriptions.{kind}" for kind in ("csv", "jsonl", "parquet")
    ]
    assert [json.loads(line) for line in paths[1].read_text().splitlines()] == ROWS
    assert read_table(paths[2]).to_pylist() == ROWS
    assert paths[0].read_bytes().startswith(b"\xef\xbb\xbf")
    first, second = csv.DictReader(paths[0].open(encoding="utf-8-sig", newline=""))
    assert list(first) == list(ROWS[0])
    assert (first["name"], first["description"]) == (ROWS[0]["name"], ROWS[0]["description"])
    assert (first["flags"], first["seconds"]) == ("", "0.25")
    assert (second["name"], second["description"]) == ("'=HYPERLINK(1)", "'-3 % off")
    assert second["flags"] == "html length"
    assert second["problems"] == "HTML: '<b>'; 3 characters, at least 9 are wanted"


def test_files_are_replaced(table: Any, tmp_path: Path) -> None:
    """Older ones make room, and no scratch file stays."""
    write_files(table, tmp_path)
    write_files(table.slice(0, 1), tmp_path)
    assert len((tmp_path / "descriptions.jsonl").read_text().splitlines()) == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """A disk that is full half-way, or a kill."""
    path = tmp_path / "descriptions.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replaced(path) as scratch:
        scratch.write_text("half")
        raise OSError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
