"""Which table a source means, and what its version follows."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmtune.catalog import source as source_module
from vlmtune.catalog.catalog import hash_rows, iterate_batches
from vlmtune.catalog.loading import load_catalog
from vlmtune.catalog.source import catalog_version, open_sources
from vlmtune.errors import UserError

MakeCatalog = Callable[..., Path]
MakeRows = Callable[[int], list[dict[str, Any]]]
MakeData = Callable[..., Any]


def problem_of(data: Any) -> str:
    """The message with which a catalog is refused."""
    with pytest.raises(UserError) as caught:
        load_catalog(data, "v")
    return str(caught.value)


# Which table ----------------------------------------------------------------------------------


def test_columns_are_renamed(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """Fields are named by the mapping; columns that it leaves out are not carried along."""
    rows = [{"pic": "images/a.png", "Titel": "Tasse", "Text": "Eine Tasse.", "Preis": "3"}]
    columns = {"image": "pic", "title": "Titel", "description": "Text"}
    catalog, _ = load_catalog(make_data(make_catalog(rows), columns=columns), "v")
    assert set(catalog.rows.column_names) == {"row_id", "images", "title", "description"}
    assert catalog.rows[0]["title"] == "Tasse"


def test_file_name_stands_for_image(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """The imagefolder convention's `file_name` is found under the name `image` too."""
    columns = {"image": "image", "name": "Product Name", "description": "description"}
    catalog, _ = load_catalog(make_data(make_catalog(), columns=columns), "v")
    assert len(catalog.rows) == 3


def test_table_by_name(make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData) -> None:
    """Of several tables in a folder the named one is read; a name that is none is told."""
    folder = make_catalog(make_rows(1))
    make_catalog(make_rows(2), "jsonl")
    assert len(load_catalog(make_data(folder, metadata="metadata.jsonl"), "v")[0].rows) == 2
    assert "holds no table other.csv" in problem_of(make_data(folder, metadata="other.csv"))


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


def test_a_file_that_is_no_table(tmp_path: Path, make_data: MakeData) -> None:
    """The kinds of tables are listed."""
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    assert "is no table (.csv, .tsv, .jsonl, .parquet)" in problem_of(
        make_data(tmp_path / "rows.xlsx")
    )


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


# Several sources ------------------------------------------------------------------------------


@pytest.fixture
def joined(make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData) -> Any:
    """Three rows of a csv folder, and two of a jsonl table with other columns, one of them bad."""
    other = [
        {"pic": "images/x.png", "title": "Vase", "kind": "Home", "text": "A vase."},
        {"pic": "images/gone.png", "title": "Lamp", "kind": "Home", "text": "A lamp."},
    ]
    folder = make_catalog(other, "jsonl", name="other")
    (folder / "images/gone.png").unlink()
    columns = {"image": "pic", "name": "title", "category": "kind", "description": "text"}
    further = {"source": str(folder / "metadata.jsonl"), "columns": columns}
    return make_data(make_catalog(make_rows(3)), more_sources=[further])


def test_sources_are_joined(joined: Any) -> None:
    """Each source with its own columns, folder and names of its rows."""
    catalog, ledger = load_catalog(joined, catalog_version(joined))
    assert catalog.rows["name"] == ["Mug 1", "Mug 2", "Mug 3", "Vase"]
    assert ledger.lines["line"] == [1, 2, 3, 4, 5]
    assert ledger.lines["place"][2:4] == [
        "catalog/metadata.csv row 3",
        "other/metadata.jsonl row 1",
    ]
    assert [reason["code"] for reason in ledger.lines[4]["reasons"]] == ["picture_not_found"]


def test_max_rows_counts_over_all_sources(joined: Any) -> None:
    """Rows behind them are not looked at."""
    _, ledger = load_catalog(joined.model_copy(update={"max_rows": 4}), "v")
    assert ledger.counts["rows_read"] == ledger.counts["kept"] == 4


def test_a_further_source_that_cannot_be_read_is_one_error(joined: Any) -> None:
    """A source that lacks a column is named, whichever it is."""
    further = joined.more_sources[0].model_copy(update={"columns": None})
    data = joined.model_copy(update={"more_sources": [further]})
    assert "metadata.jsonl has no column 'file_name'" in problem_of(data)


def test_versions_are_joined(joined: Any) -> None:
    """A changed row of any source is another version."""
    before = catalog_version(joined)
    first, second = before.split("+")
    assert first.startswith("sha256:") and second.startswith("sha256:")
    table = Path(joined.more_sources[0].source)
    table.write_text(table.read_text().replace("A vase.", "A vase!"))
    after_first, after_second = catalog_version(joined).split("+")
    assert after_first == first
    assert after_second != second


def test_each_hub_source_is_opened_at_its_own_version(
    joined: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commits stand in the order of the sources."""
    opened: list[tuple[str, str]] = []
    monkeypatch.setattr(
        source_module, "_open_hub", lambda source, commit: opened.append((source.source, commit))
    )
    further = [{"source": "owner/one"}, {"source": "owner/two"}]
    data = type(joined)(**joined.model_dump() | {"more_sources": further})
    list(open_sources(data, "sha256:x+commit1+commit2"))
    assert opened == [("owner/one", "commit1"), ("owner/two", "commit2")]


# Versions -------------------------------------------------------------------------------------


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


def test_version_of_a_table_follows_the_pictures_it_names(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """What else lies in the folder, a home directory perhaps, does not count."""
    folder = make_catalog(make_rows(2))
    data = make_data(folder / "metadata.csv")
    before = catalog_version(data)
    (folder / "images/unnamed.png").write_bytes(b"other")
    (folder / "notes.txt").write_text("unrelated")
    assert catalog_version(data) == before
    (folder / "images/2.png").write_bytes((folder / "images/1.png").read_bytes())
    changed = catalog_version(data)
    assert changed != before
    (folder / "images/2.png").unlink()
    assert catalog_version(data) not in (before, changed)


def test_version_of_a_table_with_hostile_names(make_data: MakeData, tmp_path: Path) -> None:
    """Names that no file can have are rows to quarantine, not errors."""
    os.symlink("loop.png", tmp_path / "loop.png")
    names = ["x" * 5000 + ".png", "a\0b.png", "loop.png", "../../../etc/passwd", "http://[bad"]
    table = tmp_path / "t.csv"
    lines = [f"{name},n,c,d\n" for name in names]
    table.write_text("file_name,Product Name,Category,description\n" + "".join(lines))
    data = make_data(table)
    assert catalog_version(data) == catalog_version(data)
    assert load_catalog(data, "v")[1].counts["quarantined"] == len(names)


# Digests --------------------------------------------------------------------------------------


def test_hash_does_not_depend_on_chunks(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """The same rows in one Arrow chunk or in three, read in any batches, have one digest."""
    from datasets import concatenate_datasets

    rows = load_catalog(make_data(make_catalog()), "v")[0].rows
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


def test_pictures_of_neighbouring_rows_do_not_run_together() -> None:
    """Two pictures of one row are not one picture of each of two rows."""
    one, two = {"bytes": b"1", "path": ""}, {"bytes": b"2", "path": ""}
    digests = {
        hash_rows([{"images": images}])
        for images in ([[one, two], []], [[one], [two]], [[], [one, two]], [[two], [one]])
    }
    assert len(digests) == 4
