"""Catalogs in each of their formats, and each row that cannot be used named with its number."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from vlmtune.catalog.catalog import Catalog, hash_rows, iterate_batches
from vlmtune.catalog.source import catalog_version, load_catalog
from vlmtune.errors import UserError

MakeCatalog = Callable[..., Path]
MakeRows = Callable[[int], list[dict[str, Any]]]
MakeData = Callable[..., Any]


def texts(catalog: Catalog) -> list[dict[str, Any]]:
    """All columns but the picture."""
    return list(catalog.rows.remove_columns("image"))


def problem_of(data: Any) -> str:
    """The message with which a catalog is refused."""
    with pytest.raises(UserError) as caught:
        load_catalog(data, "v")
    return str(caught.value)


def bomb() -> bytes:
    """A PNG of under 100 bytes that declares 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


# What is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_formats_give_the_same_rows(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData, kind: str
) -> None:
    """Ids, texts and pictures do not depend on the metadata's format."""
    rows = make_rows(4)
    rows[1]["Product Name"] = "007"
    rows[2]["description"] = 'Two lines,\n"quoted", with a comma and 3.50 €'
    rows[3]["Category"] = "NA"
    csv = load_catalog(make_data(make_catalog(rows, "csv", "a")), "v")
    other = load_catalog(make_data(make_catalog(rows, kind, "b")), "v")
    assert texts(other) == texts(csv)
    assert [row["name"] for row in texts(csv)] == ["Mug 1", "007", "Mug 3", "Mug 4"]
    assert texts(csv)[2]["description"] == rows[2]["description"]
    assert hash_rows(iterate_batches(other.rows)) == hash_rows(iterate_batches(csv.rows))


def test_pictures_are_handed_on_as_they_are(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """The bytes of the file, not of a re-encoded picture."""
    folder = make_catalog()
    catalog = load_catalog(make_data(folder), "v")
    assert catalog.picture(1) == (folder / "images/2.png").read_bytes()
    assert (catalog.source, catalog.version) == (str(folder), "v")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_byte_order_mark(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData, kind: str
) -> None:
    """A BOM, as Excel writes it, is no part of the first column's name."""
    folder = make_catalog(make_rows(2), kind, encoding="utf-8-sig")
    assert (folder / f"metadata.{kind}").read_bytes().startswith(b"\xef\xbb\xbf")
    assert len(load_catalog(make_data(folder), "v").rows) == 2


def test_columns_are_renamed(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """Fields are named by the mapping; columns that it leaves out are not carried along."""
    rows = [{"pic": "images/a.png", "Titel": "Tasse", "Text": "Eine Tasse.", "Preis": "3"}]
    columns = {"image": "pic", "title": "Titel", "description": "Text"}
    catalog = load_catalog(make_data(make_catalog(rows), columns=columns), "v")
    assert set(catalog.rows.column_names) == {"row_id", "image", "title", "description"}
    assert texts(catalog)[0]["title"] == "Tasse"


def test_file_name_stands_for_image(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """The imagefolder convention's `file_name` is found under the name `image` too."""
    columns = {"image": "image", "name": "Product Name", "description": "description"}
    assert len(load_catalog(make_data(make_catalog(), columns=columns), "v").rows) == 3


def test_max_rows(make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData) -> None:
    """Only the first rows are read; a broken row behind them is not looked at."""
    rows = make_rows(5)
    rows[4]["file_name"] = "gone.png"
    catalog = load_catalog(make_data(make_catalog(rows), max_rows=4), "v")
    assert [row["name"] for row in texts(catalog)] == ["Mug 1", "Mug 2", "Mug 3", "Mug 4"]


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "كوب من الخزف الأزرق، مصنوع يدويًا",
        "ספל קרמיקה כחול",
        "手作りの青い陶器マグカップ。",
        "蓝色陶瓷马克杯",
        "Mug 🫖 {name} %s \\n <b>&amp;</b>",
    ],
    ids=["100k", "arabic", "hebrew", "japanese", "chinese", "emoji-braces-html"],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_any_text_passes(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData, text: str, kind: str
) -> None:
    """Long descriptions and other scripts arrive letter by letter."""
    rows = make_rows(1)
    rows[0] |= {"description": text, "Product Name": text}
    (row,) = texts(load_catalog(make_data(make_catalog(rows, kind)), "v"))
    assert row["description"] == row["name"] == text


def test_nullable_and_list_columns_of_parquet(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Missing values of pandas' nullable types are empty cells; lists are text."""
    folder = make_catalog(make_rows(2), "parquet")
    table = pandas.DataFrame(make_rows(2))
    table["sku"] = pandas.array([5, None], dtype="Int64")
    table["tags"] = [["a", "b"], ["c", "d"]]
    table.to_parquet(folder / "metadata.parquet")
    columns = {"image": "file_name", "description": "description", "sku": "sku", "tags": "tags"}
    problem = problem_of(make_data(folder, columns=columns))
    assert "1 of 2 rows" in problem
    assert "row 2: the column 'sku' is empty" in problem


# Row ids --------------------------------------------------------------------------------------


def ids_by_name(catalog: Catalog) -> dict[str, str]:
    return {row["name"]: row["row_id"] for row in texts(catalog)}


def test_row_ids_follow_the_row(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Neither the order nor the description of rows, nor their files' names, change their ids."""
    rows = make_rows(4)
    before = ids_by_name(load_catalog(make_data(make_catalog(rows, name="a")), "v"))
    folder = make_catalog([], name="b")
    for number, row in enumerate(rows):
        original = (folder.parent / "a" / row["file_name"]).read_bytes()
        row |= {"file_name": f"images/new{number}.png", "description": "Rewritten."}
        (folder / row["file_name"]).write_bytes(original)
    make_catalog(rows[::-1], name="b")
    assert ids_by_name(load_catalog(make_data(folder), "v")) == before
    assert len(set(before.values())) == 4


def test_row_id_changes_with_picture_and_fields(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Another picture or another field is another row; the others keep their ids."""
    rows = make_rows(3)
    folder = make_catalog(rows)
    before = ids_by_name(load_catalog(make_data(folder), "v"))
    Image.new("RGB", (9, 9), "red").save(folder / "images/1.png")
    rows[1]["Category"] = "Office"
    make_catalog(rows)
    after = ids_by_name(load_catalog(make_data(folder), "v"))
    assert after["Mug 1"] != before["Mug 1"]
    assert after["Mug 2"] != before["Mug 2"]
    assert after["Mug 3"] == before["Mug 3"]


def test_duplicates_get_a_suffix(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Equal rows stay apart."""
    (row,) = make_rows(1)
    ids = [r["row_id"] for r in texts(load_catalog(make_data(make_catalog([row] * 3)), "v"))]
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"]


# What is refused ------------------------------------------------------------------------------


def test_each_problem_row_is_named(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData, tmp_path: Path
) -> None:
    """All broken rows are told at once, each by its number and what is wrong with it."""
    rows = make_rows(10)
    folder = make_catalog(rows)
    outside = tmp_path / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    rows[1]["description"] = " \n"
    rows[2]["file_name"] = "images/gone.png"
    path = folder / "images/4.png"
    path.write_bytes(path.read_bytes()[:-30])
    (folder / "images/5.png").write_bytes(bomb())
    rows[5]["file_name"] = "../outside.png"
    rows[6]["file_name"] = str(outside)
    (folder / "images/link.png").symlink_to(outside)
    rows[7]["file_name"] = "images/link.png"
    (folder / "images/loop.png").symlink_to("loop.png")
    rows[8]["file_name"] = "images/loop.png"
    rows[9]["file_name"] = ""
    (folder / "metadata.csv").unlink()
    pandas.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    head, *lines = problem_of(make_data(folder)).splitlines()
    assert head == f"9 of 10 rows of {folder} cannot be used:"
    expected = [
        "row 2: the column 'description' is empty",
        "row 3: picture 'images/gone.png' does not exist",
        "row 4: picture images/4.png: ",
        "row 5: picture images/5.png: ",
        "row 6: picture '../outside.png' lies outside the catalog's folder",
        f"row 7: picture '{outside}' lies outside the catalog's folder",
        "row 8: picture 'images/link.png' lies outside the catalog's folder",
        "row 9: ",
        "row 10: no picture is named",
    ]
    assert len(lines) == len(expected) + 1
    for line, start in zip(lines, expected, strict=False):
        assert line.strip().startswith(start)
    assert "pixels" in lines[3]
    assert "no row is dropped silently" in lines[-1]


def test_long_list_of_problems_is_cut(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Ten problems are shown, the others counted."""
    rows = [row | {"description": ""} for row in make_rows(13)]
    problem = problem_of(make_data(make_catalog(rows)))
    assert "row 10: " in problem
    assert "row 11: " not in problem
    assert "and 3 more" in problem


def test_link_inside_the_folder_is_allowed(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """A link is refused for where it leads, not for being one."""
    rows = make_rows(1)
    folder = make_catalog(rows)
    (folder / "images/link.png").symlink_to("1.png")
    rows[0]["file_name"] = "images/link.png"
    make_catalog(rows)
    assert len(load_catalog(make_data(folder), "v").rows) == 1


def test_missing_column(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """The column, the key that names it and the columns that are there."""
    columns = {"image": "file_name", "name": "Title", "description": "description"}
    problem = problem_of(make_data(make_catalog(), columns=columns))
    assert "no column 'Title', which data.columns.name names" in problem
    assert "'Product Name'" in problem


def test_no_folder(tmp_path: Path, make_data: MakeData) -> None:
    """A folder that is not there is named in full, with the key to set."""
    data = make_data(tmp_path / "none")
    assert f"no such catalog folder: {tmp_path / 'none'}" in problem_of(data)
    with pytest.raises(UserError, match=r"data\.source"):
        catalog_version(data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", ""),
        ("metadata.csv", "file_name,Product Name,Category,description\n"),
        ("metadata.jsonl", ""),
    ],
    ids=["empty csv", "header only", "empty jsonl"],
)
def test_empty_catalog(tmp_path: Path, make_data: MakeData, name: str, content: str) -> None:
    """A catalog without rows is called empty."""
    (tmp_path / name).write_text(content)
    assert "is empty." in problem_of(make_data(tmp_path))


def test_several_metadata_files(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """Which of two metadata files is meant is not guessed."""
    make_catalog(kind="csv")
    problem = problem_of(make_data(make_catalog(kind="jsonl")))
    assert "several metadata files" in problem
    assert "metadata.csv, metadata.jsonl, metadata.parquet" in problem


def test_no_metadata_file(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """A folder of mere pictures says what it lacks."""
    folder = make_catalog()
    (folder / "metadata.csv").unlink()
    assert "no metadata file" in problem_of(make_data(folder))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,description\nimages/1.png,Grün\n".encode("latin-1")),
        ("metadata.csv", b'file_name,description\nimages/1.png,"never closed\n'),
        ("metadata.jsonl", b'{"file_name": "images/1.png"}\n{oops\n'),
        ("metadata.parquet", b"PAR1 but no more"),
    ],
    ids=["latin-1", "open quote", "broken json", "broken parquet"],
)
def test_unreadable_metadata(
    tmp_path: Path, make_data: MakeData, name: str, content: bytes
) -> None:
    """A metadata file that cannot be read is named."""
    (tmp_path / name).write_bytes(content)
    assert f"cannot read {tmp_path / name}: " in problem_of(make_data(tmp_path))


# Digests --------------------------------------------------------------------------------------


def test_hash_does_not_depend_on_chunks(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """The same rows in one Arrow chunk or in three, read in any batches, have one digest."""
    from datasets import concatenate_datasets

    rows = load_catalog(make_data(make_catalog()), "v").rows
    chunked = concatenate_datasets([rows.select([row]) for row in range(3)])
    assert chunked.data.nbytes != 0
    assert chunked.data.column("row_id").num_chunks == 3
    digest = hash_rows(iterate_batches(rows))
    assert hash_rows(iterate_batches(chunked)) == digest
    assert hash_rows(rows.iter(batch_size=1)) == digest
    assert hash_rows(iterate_batches(rows.select([0, 2, 1]))) != digest


def test_neighbouring_values_do_not_run_together() -> None:
    """Moving a letter from one value to the next is another digest."""
    assert hash_rows([{"a": ["xy"], "b": ["z"]}]) != hash_rows([{"a": ["x"], "b": ["yz"]}])
    split_late = {"a": [b"x'b'"], "b": [b"y"]}
    split_early = {"a": [b"x"], "b": [b"'b'y"]}
    assert hash_rows([split_late]) != hash_rows([split_early])
    assert hash_rows([{"a": [b"1"]}]) != hash_rows([{"a": [b"2"]}])


def test_version_follows_the_content(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """One changed byte of a picture, or a renamed file, is another version; a touch is none."""
    folder = make_catalog()
    data = make_data(folder)
    before = catalog_version(data)
    assert before.startswith("sha256:")
    assert len(before) == len("sha256:") + 64
    picture = folder / "images/1.png"
    picture.touch()
    assert catalog_version(data) == before
    content = bytearray(picture.read_bytes())
    content[-1] ^= 1
    picture.write_bytes(content)
    changed = catalog_version(data)
    assert changed != before
    picture.rename(folder / "images/first.png")
    assert catalog_version(data) not in (before, changed)
