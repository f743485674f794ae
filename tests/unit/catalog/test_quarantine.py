"""Rows that cannot be used: each is told why, kept with its original, and may come back."""

import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from vlmtune.catalog import picture_files
from vlmtune.catalog.ledger import Decision, RowLedger
from vlmtune.catalog.loading import PreviousCatalog, load_catalog
from vlmtune.errors import UserError

MakeCatalog = Callable[..., Path]
MakeRows = Callable[[int], list[dict[str, Any]]]
MakeData = Callable[..., Any]


def bomb() -> bytes:
    """A PNG of under 100 bytes that declares 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def reasons(ledger: RowLedger) -> list[list[tuple[str, str]]]:
    """Code and message of each row's reasons."""
    return [
        [(reason["code"], reason["message"]) for reason in line["reasons"]] for line in ledger.lines
    ]


def quarantined(ledger: RowLedger) -> list[dict[str, Any]]:
    """The rows of the quarantine."""
    table = ledger.quarantine / "metadata.jsonl"
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def split_lines(text: str) -> list[str]:
    """Lines as a table has them, whatever else Unicode takes for a line's end."""
    return text.removesuffix("\n").split("\n")


# Pictures that are not to be had --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("../../etc/passwd", "picture_outside_folder", "lies outside the catalog's folder"),
        ("/etc/passwd", "picture_outside_folder", "lies outside the catalog's folder"),
        ("images/../../outside.png", "picture_outside_folder", "lies outside"),
        ("images/out.png", "picture_outside_folder", "lies outside"),
        ("images/away/outside.png", "picture_outside_folder", "lies outside"),
        ("images/loop.png", "picture_not_found", "loop"),
        ("images/gone.png", "picture_not_found", "does not exist"),
        ("images", "picture_not_found", "does not exist"),
        ("images/a\0b.png", "picture_not_found", "null byte"),
        (f"images/{'x' * 5000}.png", "picture_not_found", "too long"),
        ("images/bomb.png", "picture_unreadable", "pixels"),
        ("images/cut.png", "picture_unreadable", "truncated"),
        ("images/text.png", "picture_unreadable", "no picture"),
        ("images/empty.png", "picture_unreadable", "no picture"),
        ("images/tiny.png", "picture_too_small", "15 x 40 pixels, at least 16"),
        ("", "missing_picture", "a picture is expected"),
        ("http://user:secret@[::1/x.png", "download_failed", "cannot be read"),
        ("ftp://example.com/x.png", "picture_not_found", "does not exist"),
        ("file:///etc/passwd", "picture_not_found", "does not exist"),
    ],
)
def test_hostile_and_broken_pictures(
    make_catalog: MakeCatalog,
    make_rows: MakeRows,
    make_data: MakeData,
    tmp_path: Path,
    name: str,
    code: str,
    message: str,
) -> None:
    """The row is quarantined for one reason, and the row beside it is kept."""
    rows = make_rows(2)
    folder = make_catalog(rows)
    outside = tmp_path / "outside.png"
    Image.new("RGB", (20, 20)).save(outside)
    (folder / "images/out.png").symlink_to(outside)
    (folder / "images/away").symlink_to(tmp_path)
    (folder / "images/loop.png").symlink_to("loop.png")
    (folder / "images/bomb.png").write_bytes(bomb())
    (folder / "images/cut.png").write_bytes((folder / "images/1.png").read_bytes()[:-30])
    (folder / "images/text.png").write_text("root:x:0:0")
    (folder / "images/empty.png").touch()
    Image.new("RGB", (15, 40)).save(folder / "images/tiny.png")
    rows[0]["file_name"] = name
    (folder / "metadata.csv").unlink()
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines))
    catalog, ledger = load_catalog(make_data(folder), "v")
    assert ledger.lines["decision"] == ["quarantined", "kept"]
    ((found, text),) = reasons(ledger)[0]
    assert found == code
    assert message in text
    assert "secret" not in text
    assert catalog.rows["name"] == ["Mug 2"]
    assert quarantined(ledger)[0]["file_name"] == name


def test_link_inside_the_folder_is_allowed(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """A link is refused for where it leads, not for being one."""
    rows = make_rows(1)
    folder = make_catalog(rows)
    (folder / "images/link.png").symlink_to("1.png")
    rows[0]["file_name"] = "images/link.png"
    make_catalog(rows)
    assert load_catalog(make_data(folder), "v")[1].counts["kept"] == 1


def test_a_pipe_is_not_waited_for(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """A file that is no regular one does not exist; reading a pipe would never end."""
    rows = make_rows(1)
    folder = make_catalog(rows)
    (folder / "images/1.png").unlink()
    os.mkfifo(folder / "images/1.png")
    _, ledger = load_catalog(make_data(folder), "v")
    assert reasons(ledger)[0][0][0] == "picture_not_found"


def test_a_huge_file_is_not_read(
    make_catalog: MakeCatalog,
    make_rows: MakeRows,
    make_data: MakeData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The size is known before a byte is read."""
    monkeypatch.setattr(picture_files, "MAX_FILE_BYTES", 10)
    _, ledger = load_catalog(make_data(make_catalog(make_rows(1))), "v")
    assert reasons(ledger)[0][0][0] == "picture_too_large"


# Rows that are broken in themselves -----------------------------------------------------------


def test_ragged_rows_keep_their_originals(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """A row with too few and one with too many cells; the surplus cell is not lost."""
    folder = make_catalog()
    with (folder / "metadata.csv").open("a") as table:
        table.write("images/1.png,Mug 4\nimages/2.png,Mug 5,Kitchen,A mug, and a saucer.\n")
    catalog, ledger = load_catalog(make_data(folder), "v")
    assert ledger.lines["decision"] == ["kept"] * 3 + ["quarantined"] * 2
    short, long = quarantined(ledger)
    assert short["Product Name"] == "Mug 4" and "description" not in short
    assert (long["description"], long["cell 5"]) == ("A mug", " and a saucer.")
    assert (long["_line"], long["_place"]) == (5, "catalog/metadata.csv row 5")
    assert long["_row_id"] == ledger.lines[4]["row_id"]
    assert "5 cells, the header has 4" in long["_reasons"][0]
    assert len(catalog.rows) == 3


def test_broken_json_lines_are_kept_as_they_are(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Broken text and a key that is given twice: these two rows, not those around them."""
    folder = make_catalog(make_rows(2), "jsonl")
    lines = ["{oops", '{"file_name": "images/1.png", "file_name": "images/2.png"}']
    with (folder / "metadata.jsonl").open("a") as table:
        table.writelines(f"{line}\n" for line in lines)
    _, ledger = load_catalog(make_data(folder), "v")
    assert ledger.lines["decision"] == ["kept"] * 2 + ["quarantined"] * 2
    assert [row["line"] for row in quarantined(ledger)] == lines
    assert "'file_name' is given twice" in reasons(ledger)[3][0][1]


def test_white_space_is_no_text(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Whatever kind of white space; a whole row of it is a row."""
    rows = make_rows(3)
    rows[0]["description"] = " \n\t"
    rows[1]["Product Name"] = "\N{NO-BREAK SPACE}\N{ZERO WIDTH SPACE}"
    rows[2] = dict.fromkeys(rows[2], "  ")
    _, ledger = load_catalog(make_data(make_catalog(rows)), "v")
    codes = [{code for code, _ in row} for row in reasons(ledger)]
    assert codes[0] == {"missing_text"}
    assert codes[1] >= {"missing_text"}
    assert codes[2] == {"missing_text", "missing_picture"}
    assert len(reasons(ledger)[2]) == 4
    assert ledger.lines["decision"] == ["quarantined"] * 3


def test_half_a_character_does_not_stop_the_reading(
    make_catalog: MakeCatalog, make_data: MakeData
) -> None:
    r"""JSON may hold `\ud800`, which is no text: removed from a text, refused as a name."""
    folder = make_catalog()
    (folder / "metadata.csv").unlink()
    row = {"file_name": "images/1.png", "Product Name": "Mug", "Category": "K", "description": "M."}
    rows = [
        row | {"description": "A \ud83dmug.", "unused": "\udfff"},
        row | {"file_name": "images/\ud800.png"},
        row | {"file_name": "http://example\ud800.invalid/x.png"},
        row | {"file_name": "images/gone.png", "unused": "\ud800 and ü"},
    ]
    lines = [json.dumps(each) + "\n" for each in rows]
    (folder / "metadata.jsonl").write_text("".join(lines))
    catalog, ledger = load_catalog(make_data(folder), "v")
    assert ledger.lines["decision"] == ["repaired"] + ["quarantined"] * 3
    assert catalog.rows["description"] == ["A mug."]
    assert [row["file_name"] for row in quarantined(ledger)] == [
        row["file_name"] for row in rows[1:]
    ]
    assert quarantined(ledger)[2]["unused"] == "\ud800 and ü"
    assert r"\ud800" in ledger.lines[1]["pictures"][0]["name"]


@pytest.mark.parametrize("value", ["text", 5, [1, 2], {"bytes": {}}])
def test_bytes_that_are_none(make_catalog: MakeCatalog, make_data: MakeData, value: Any) -> None:
    """JSON cannot hold bytes; what stands in their place is no picture."""
    folder = make_catalog()
    (folder / "metadata.csv").unlink()
    row = {"file_name": {"bytes": value}, "Product Name": "M", "Category": "K", "description": "M"}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    _, ledger = load_catalog(make_data(folder), "v")
    assert reasons(ledger)[0][0][0] == "missing_picture"


# All of them, always --------------------------------------------------------------------------


def test_a_catalog_without_a_good_row(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """An empty catalog and a full ledger, which says so when it is to be trained on."""
    rows = [row | {"description": ""} for row in make_rows(3)]
    catalog, ledger = load_catalog(make_data(make_catalog(rows)), "v")
    assert len(catalog.rows) == 0
    assert catalog.rows.column_names == ["row_id", "images", "name", "category", "description"]
    assert ledger.counts["quarantined"] == 3
    with pytest.raises(UserError, match="3 of 3 rows are quarantined"):
        ledger.require_acceptable(1.0)


WAYS_TO_BREAK: list[Callable[[dict[str, Any]], Any]] = [
    lambda row: row,
    lambda row: row | {"description": "<b>Bold</b> &amp; good"},
    lambda row: row | {"Product Name": "e\u0301"},
    lambda row: row | {"description": None},
    lambda row: row | {"description": ["a", {"b": None}]},
    lambda row: row | {"Category": "  "},
    lambda row: row | {"file_name": "../x.png"},
    lambda row: row | {"file_name": None},
    lambda row: row | {"file_name": ["images/1.png", "images/2.png"]},
    lambda row: row | {"file_name": {"bytes": None, "path": "images/1.png"}},
    lambda row: row | {"file_name": 17},
    lambda row: row | {"unused": float("nan"), "deep": {"a": [{"b": "\ud800"}]}},
    lambda row: {"description": "nothing else"},
    lambda row: {},
    lambda row: [row],
    lambda row: None,
    lambda row: "text",
]


@pytest.mark.parametrize("seed", range(12))
def test_no_row_is_lost(make_catalog: MakeCatalog, make_data: MakeData, seed: int) -> None:
    """Each row has one of the four decisions, whatever rows they are a mixture of."""
    rng = random.Random(seed)
    folder = make_catalog()
    (folder / "metadata.csv").unlink()
    rows = []
    for number in range(rng.randint(1, 150)):
        row = {
            "file_name": f"images/{rng.randint(1, 3)}.png",
            "Product Name": f"Mug {number % 20}",
            "Category": "Kitchen",
            "description": "A mug.",
        }
        text = json.dumps(rng.choice(WAYS_TO_BREAK)(row))
        rows.append(text if rng.random() > 0.1 else text[: rng.randint(1, len(text))])
    good = json.dumps(dict.fromkeys(["file_name", "Product Name", "Category", "description"], "x"))
    (folder / "metadata.jsonl").write_text("\n".join([good, *rows]) + "\n")
    catalog, ledger = load_catalog(make_data(folder), "v")
    counts = ledger.counts
    assert counts["rows_read"] == len(rows) + 1
    assert sum(counts[decision] for decision in Decision) == counts["rows_read"]
    assert counts["train"] + counts["held_out"] == counts["kept"] + counts["repaired"]
    assert len(catalog.rows) == counts["kept"] + counts["repaired"]
    assert (
        len(split_lines((ledger.quarantine / "metadata.jsonl").read_text()))
        == (counts["quarantined"])
    )
    assert ledger.lines["line"] == list(range(1, len(rows) + 2))
    assert len(set(ledger.lines["row_id"])) == len(rows) + 1
    kept = {line["row_id"]: line for line in ledger.lines if line["side"]}
    assert list(kept) == catalog.rows["row_id"]
    for line in ledger.lines:
        assert bool(line["reasons"]) == (line["decision"] != "kept")
        assert bool(line["side"]) == bool(line["group"]) == Decision(line["decision"]).in_catalog
        assert bool(line["copy_of"]) == (line["decision"] == "duplicate")
        if line["copy_of"]:
            assert line["text_hash"] == kept[line["copy_of"]]["text_hash"]
    texts = [tuple(row.values())[1:] for row in catalog.texts()]
    pictures = [tuple(catalog.pictures(row)) for row in range(len(texts))]
    assert len(set(zip(texts, pictures, strict=True))) == len(texts)


# There and back -------------------------------------------------------------------------------


def test_mended_rows_can_be_fed_back(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData, tmp_path: Path
) -> None:
    """A text is filled in; the picture lies in the quarantine beside it, byte for byte."""
    rows = make_rows(4)
    rows[1]["description"] = ""
    rows[2]["Category"] = ""
    folder = make_catalog(rows)
    first = make_data(folder)
    _, ledger = load_catalog(first, "v")
    broken = quarantined(ledger)
    assert [len(row["_pictures"]) for row in broken] == [1, 1]
    mended = tmp_path / "mended"
    (mended / "pictures").mkdir(parents=True)
    for row in broken:
        row |= {"description": "Mended.", "Category": "Mended"}
        (name,) = row["_pictures"]
        (mended / name).write_bytes((ledger.quarantine / name).read_bytes())
    lines = [json.dumps(row) + "\n" for row in broken]
    (mended / "metadata.jsonl").write_text("".join(lines))
    columns = first.columns | {"image": "_pictures"}
    data = make_data(folder, more_sources=[{"source": str(mended), "columns": columns}])
    catalog, again = load_catalog(data, "v+v")
    assert catalog.rows["name"] == ["Mug 1", "Mug 4", "Mug 2", "Mug 3"]
    assert catalog.pictures(2) == [(folder / "images/2.png").read_bytes()]
    assert again.counts["kept"] == 4


def test_the_quarantine_itself_is_a_catalog(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Where the rule is mended instead of the rows, the folder is read as it is."""
    rows = [row | {"Product Name": "杯子 \N{LINE SEPARATOR}mug"} for row in make_rows(2)]
    strict = {"texts": {"description": {"min_length": 1000}}}
    first = make_data(make_catalog(rows), contract=strict)
    _, ledger = load_catalog(first, "v")
    assert ledger.counts["quarantined"] == 2
    columns = first.columns | {"image": "_pictures"}
    catalog, _ = load_catalog(make_data(ledger.quarantine, columns=columns), "v")
    assert len(catalog.rows) == 2
    assert catalog.rows["name"][0].startswith("杯子")


def test_embedded_pictures_are_written_beside_the_row(
    make_catalog: MakeCatalog, make_data: MakeData
) -> None:
    """The table has no bytes; the file has them, named by what they are."""
    import pandas

    folder = make_catalog()
    picture = (folder / "images/1.png").read_bytes()
    (folder / "metadata.csv").unlink()
    row = {
        "file_name": {"bytes": picture, "path": "a.png"},
        "Product Name": "Mug",
        "Category": "",
        "description": "A mug.",
    }
    pandas.DataFrame([row]).to_parquet(folder / "metadata.parquet")
    _, ledger = load_catalog(make_data(folder), "v")
    (line,) = quarantined(ledger)
    assert line["file_name"] == {"bytes": None, "path": "a.png"}
    assert line["_pictures"] == ["pictures/0000001-1.png"]
    assert (ledger.quarantine / "pictures/0000001-1.png").read_bytes() == picture


def test_a_row_that_would_join_both_sides_is_quarantined_late(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """It has the picture of a train row and the name of a held-out one; its original is kept."""
    rows = make_rows(20)
    folder = make_catalog(rows)
    for number in range(1, 21):
        pixels = numpy.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype="uint8")
        picture = Image.fromarray(pixels).resize((64, 48), Image.Resampling.NEAREST)
        picture.save(folder / f"images/{number}.png")
    data = make_data(folder, held_out={"fraction": 0.5, "by": "name"})
    catalog, ledger = load_catalog(data, "v1")
    sides = ledger.lines["side"]
    train, held_out = rows[sides.index("train")], rows[sides.index("held_out")]
    bridge = train | {"Product Name": held_out["Product Name"], "description": "<p>Both</p>"}
    make_catalog([bridge, *rows])
    grown, second = load_catalog(data, "v2", previous=PreviousCatalog(catalog, ledger))
    assert second.lines["side"] == ["", *sides]
    assert second.lines["decision"][0] == "quarantined"
    assert [code for code, _ in reasons(second)[0]] == ["split_conflict", "html_removed"]
    assert grown.rows["row_id"] == catalog.rows["row_id"]
    (late,) = quarantined(second)
    assert late["description"] == "<p>Both</p>"
    assert late["_place"] == second.lines["place"][0] == "catalog/metadata.csv row 1"
    assert "it would join row" in late["_reasons"][0]
    (name,) = late["_pictures"]
    assert (second.quarantine / name).read_bytes() == (folder / train["file_name"]).read_bytes()
