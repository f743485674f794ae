"""Tables in each of their formats: what is a row, what is a broken one, what is one clear error."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from vlmtune.catalog.columns import find_value, read_pictures, read_text, require_columns
from vlmtune.catalog.tables import SourceRow, read_table
from vlmtune.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a table by its bytes, or its text in UTF-8."""

    def write_table(name: str, content: bytes | str) -> Path:
        path = tmp_path / "shop" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_table


def rows_of(path: Path, encoding: str = "utf-8") -> list[SourceRow]:
    """All rows of a table."""
    return list(read_table(path, encoding)[1])


def problem_of(path: Path, encoding: str = "utf-8") -> str:
    """The message with which a table is refused."""
    with pytest.raises(UserError) as caught:
        rows_of(path, encoding)
    return str(caught.value)


# csv ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_found(write: Write, delimiter: str) -> None:
    """By the header; the others are then part of the texts."""
    texts = ["a, b", "c; d", "e\tf", "g|h"]
    cells = [f'"{text}"' if delimiter in text else text for text in texts]
    path = write("t.csv", f"{delimiter.join('wxyz')}\n{delimiter.join(cells)}\n")
    (row,) = rows_of(path)
    assert row.cells == dict(zip("wxyz", texts, strict=True))
    assert row.place == "shop/t.csv row 1"


def test_tsv(write: Write) -> None:
    """A table of tabs may have the suffix that it deserves."""
    (row,) = rows_of(write("t.tsv", "a\tb\n1,5\t2\n"))
    assert row.cells == {"a": "1,5", "b": "2"}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_another_encoding_is_named_and_can_be_set(write: Write, encoding: str) -> None:
    """Western European text is not UTF-8: the message says what it looks like."""
    text = "name,text\n" + "Grüne Schüssel,Für Müsli und Gemüse aus Österreich. Schön groß.\n" * 9
    path = write("t.csv", text.encode(encoding))
    problem = problem_of(path)
    assert "it is no utf-8 text" in problem
    assert "set data.encoding (it looks like cp125" in problem
    assert rows_of(path, encoding)[8].cells["name"] == "Grüne Schüssel"


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_utf_16(write: Write, name: str) -> None:
    """As Excel's "Unicode text" is: named where it is not expected, read where it is."""
    text = "a,b\nGrün,青\n" if name == "t.csv" else '{"a": "Grün", "b": "青"}\n'
    path = write(name, text.encode("utf-16"))
    assert "looks like utf_16" in problem_of(path)
    assert rows_of(path, "utf-16")[0].cells == {"a": "Grün", "b": "青"}


@pytest.mark.parametrize("encoding", ["utf-8", "UTF_8", "utf8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_byte_order_mark(write: Write, name: str, encoding: str) -> None:
    """It is no part of the first column's name."""
    text = "a,b\n1,2\n" if name == "t.csv" else '{"a": "1", "b": "2"}\n'
    path = write(name, text.encode("utf-8-sig"))
    assert rows_of(path, encoding)[0].cells == {"a": "1", "b": "2"}


def test_unknown_encoding(write: Write) -> None:
    """It is the setting that is wrong, not the file."""
    assert "no encoding 'klingon'" in problem_of(write("t.csv", "a\n1\n"), "klingon")


def test_ragged_rows_keep_all_their_cells(write: Write) -> None:
    """Too few or too many cells break the row, not the table; no cell is lost."""
    short, good, long = rows_of(write("t.csv", "a,b,c\n1,2\n1,2,3\n1,2,3,4,5\n"))
    assert (good.cells, good.broken) == ({"a": "1", "b": "2", "c": "3"}, None)
    assert short.cells == {"a": "1", "b": "2"}
    assert long.cells == {"a": "1", "b": "2", "c": "3", "cell 4": "4", "cell 5": "5"}
    assert short.broken and short.broken.code == "ragged_row"
    assert long.broken and "5 cells, the header has 3 (line 4)" in long.broken.message


def test_empty_lines_are_no_rows(write: Write) -> None:
    """Before, between and after the others; a row of white space is one."""
    rows = rows_of(write("t.csv", "\n \na,b\n\n1,2\r\n\r\n  ,\t\n\n"))
    assert [row.cells for row in rows] == [{"a": "1", "b": "2"}, {"a": "  ", "b": "\t"}]
    assert [row.place for row in rows] == ["shop/t.csv row 1", "shop/t.csv row 2"]
    assert len(rows_of(write("t.jsonl", '\n{"a": 1}\n  \n\n{"a": 2}'))) == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", "", "is empty"),
        ("t.csv", "\n\n", "is empty"),
        ("t.csv", "a,b,a\n1,2,3\n", "has the column 'a' twice"),
        ("t.csv", 'a,b\n1,2\n3,"never closed\n5,6\n', "unexpected end of data (after row 1"),
        ("t.csv", 'a,b\n1,"2"3\n', "A quote that is opened must be closed"),
        ("t.csv", '"a,b\n', "cannot read"),
        ("t.jsonl", "\n", "is empty"),
        ("t.parquet", "PAR1 but no more", "cannot read"),
        ("t.parquet", "", "cannot read"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_error(
    write: Write, name: str, content: str, expected: str
) -> None:
    """Where it is not known where a row ends, none can be told from the next."""
    path = write(name, content)
    problem = problem_of(path)
    assert expected in problem
    assert str(path) in problem


def test_column_twice_in_parquet(write: Write) -> None:
    """Which of them is meant is not guessed."""
    path = write("t.parquet", "")
    parquet.write_table(pyarrow.table([["1"], ["2"]], names=["a", "a"]), path)
    assert "has the column 'a' twice" in problem_of(path)


def test_a_long_cell_is_a_cell(write: Write) -> None:
    """Python's csv module would take no more than 131,072 characters."""
    (row,) = rows_of(write("t.csv", f"a,b\n1,{'x' * 1_000_000}\n"))
    assert len(row.cells["b"]) == 1_000_000


# jsonl ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{oops", "no JSON object"),
        ('["a"]', "an object in braces is expected"),
        ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ('{"b": {"a": 1, "a": 2}}', "the key 'a' is given twice"),
        ("[" * 100_000, "no JSON object"),
        (f'{{"a": {"1" * 10_000}}}', "no JSON object"),
    ],
    ids=["broken", "list", "key twice", "inner key twice", "deep", "long number"],
)
def test_broken_line_is_one_row(write: Write, line: str, expected: str) -> None:
    """The lines around it are read, and it is kept as it is."""
    path = write("t.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 3, "c": 4}}\n')
    first, broken, last = rows_of(path)
    assert (first.cells, last.cells) == ({"a": 1}, {"a": 3, "c": 4})
    assert broken.broken and broken.broken.code == "broken_json"
    assert expected in broken.broken.message
    assert broken.cells == {"line": line}
    assert {"a", "c"} <= set(read_table(path, "utf-8")[0])


# parquet --------------------------------------------------------------------------------------


def test_parquet_row_with_a_cell_that_cannot_be_read(write: Write) -> None:
    """Bytes that say they are text, and a date past the year 9999: those rows only."""
    texts = pyarrow.array([b"good", b"\xff\xfe", b"fine"]).view(pyarrow.string())
    dates = pyarrow.array([0, 0, 2**60], pyarrow.timestamp("us", tz="UTC"))
    path = write("t.parquet", "")
    parquet.write_table(pyarrow.table({"a": texts, "day": dates}), path)
    good, no_text, no_date = rows_of(path)
    assert good.cells == {"a": "good", "day": datetime(1970, 1, 1, tzinfo=UTC)}
    assert good.broken is None
    assert no_text.broken and "column 'a' cannot be read" in no_text.broken.message
    assert no_date.broken and "column 'day' cannot be read" in no_date.broken.message
    assert no_date.cells["a"] == "fine"


# columns --------------------------------------------------------------------------------------

NESTED = {
    "a.b": "flat",
    "a": {"b": "nested", "c": [{"url": "x.png"}, "y.png"]},
    "n": None,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a.b", "flat"),
        ("a.c.0.url", "x.png"),
        ("a.c.1", "y.png"),
        ("a.c.2", None),
        ("a.c.-1", None),
        ("a.c.url", None),
        ("n.x", None),
        ("none", None),
    ],
)
def test_dots_lead_into_nested_values(name: str, value: Any) -> None:
    """A column that has the dots in its own name comes first."""
    assert find_value(NESTED, name) == value
    assert find_value(json.loads(json.dumps(NESTED)), name) == value


def test_text_of_any_cell() -> None:
    """Whatever a reader makes of a missing value is the empty string."""
    cells = {"none": None, "nan": float("nan"), "zero": 0, "no": False, "raw": "Grün".encode()}
    read = {name: read_text(cells, name) for name in [*cells, "absent"]}
    assert read == {"none": "", "nan": "", "zero": "0", "no": "False", "raw": "Grün", "absent": ""}


@pytest.mark.parametrize(
    ("cell", "separator", "expected"),
    [
        ("a.jpg", None, ["a.jpg"]),
        ("a.jpg|b.jpg", None, ["a.jpg|b.jpg"]),
        ("a.jpg | b.jpg|", "|", ["a.jpg", "b.jpg"]),
        (["a.jpg", " b.jpg ", "", None], None, ["a.jpg", "b.jpg"]),
        (["a|b.jpg"], "|", ["a|b.jpg"]),
        (b"raw", None, [(b"raw", "")]),
        ({"bytes": b"raw", "path": "a.jpg"}, None, [(b"raw", "a.jpg")]),
        ({"bytes": b"raw", "path": None}, None, [(b"raw", "")]),
        ({"bytes": None, "path": "a.jpg"}, None, ["a.jpg"]),
        ({"bytes": "no bytes", "path": "a.jpg"}, None, ["a.jpg"]),
        ([{"bytes": b"1", "path": None}, b"2", "3.jpg"], None, [(b"1", ""), (b"2", ""), "3.jpg"]),
        ({"url": "a.jpg"}, None, []),
        ("  ", None, []),
        (None, "|", []),
        ([], None, []),
    ],
)
def test_pictures_of_a_cell(cell: Any, separator: str | None, expected: list[Any]) -> None:
    """Names, embedded bytes and lists of both."""
    assert read_pictures({"pic": cell}, {"image": "pic"}, separator) == expected


def test_pictures_of_several_columns() -> None:
    """In the order of the config, empty ones left out."""
    cells = {"back": "b.jpg", "front": "a.jpg", "side": ""}
    columns: dict[str, str | list[str]] = {"image": ["front", "side", "back"]}
    assert read_pictures(cells, columns, None) == ["a.jpg", "b.jpg"]


def test_required_columns() -> None:
    """A nested name needs its first part; each of several picture columns must be there."""
    require_columns({"image": ["a.b", "c"], "name": "d.e"}, ["a", "c", "d.e"], "t.csv")
    with pytest.raises(UserError, match=r"no column 'x\.y', which data\.columns\.image names"):
        require_columns({"image": ["a", "x.y"]}, ["a", "b"], "t.csv")
