"""Rows of a data set as the Hub serves them: parquet, read by the datasets library."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture
from pyarrow import parquet

from vlmtune.catalog import source as source_module
from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.catalog.loading import load_catalog
from vlmtune.config.data import DataConfig
from vlmtune.errors import UserError

SOURCE = "owner/shop"  # below the current folder, which the datasets library reads as well
COLUMNS = {"image": "image", "name": "Product Name", "description": "description"}


def encoded(colour: str = "red", size: tuple[int, int] = (20, 20)) -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Picture.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def write_data_set(
    folder: Path, pictures: list[Any], feature: Any = None, **changes: Any
) -> DataConfig:
    """A parquet data set in the Hub's layout, with one row a picture."""
    from datasets import Dataset, Features, Image, Value

    features = Features(
        {
            "image": feature or Image(),
            "Product Name": Value("string"),
            "description": Value("string"),
        }
    )
    count = len(pictures)
    rows = {
        "image": pictures,
        "Product Name": [f"Mug {number}" for number in range(count)],
        "description": ["A mug."] * count,
    }
    folder.mkdir(parents=True)
    table = Dataset.from_dict(rows, features=features).with_format("arrow")[:]
    parquet.write_table(table, folder / "train-00000-of-00001.parquet")  # with paths as they are
    return DataConfig(**{"source": SOURCE, "columns": COLUMNS} | changes)


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The libraries' caches in a folder of the test's own; sources count as data sets' ids."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "huggingface"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(cache))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(
        datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "datasets" / "downloads"
    )
    monkeypatch.setattr(source_module, "is_local", lambda source: False)
    return cache


def read(data: DataConfig) -> tuple[Catalog, RowLedger]:
    """The catalog and its ledger."""
    return load_catalog(data, "0" * 40)


def codes(ledger: RowLedger) -> list[list[str]]:
    """The codes of each row's reasons."""
    return [[reason["code"] for reason in reasons] for reasons in ledger.lines["reasons"]]


def test_pictures_stay_the_bytes_they_are(tmp_path: Path) -> None:
    """Nothing is decoded and encoded again on the way."""
    picture = encoded()
    data = write_data_set(tmp_path / SOURCE, [{"bytes": picture, "path": "a.png"}])
    catalog, ledger = read(data)
    assert catalog.pictures(0) == [picture]
    assert (catalog.rows["name"], catalog.rows["description"]) == (["Mug 0"], ["A mug."])
    assert ledger.lines[0]["pictures"][0]["name"] == "a.png"
    assert ledger.lines["place"] == ["owner/shop row 1"]


def test_a_path_of_this_machine_is_not_the_data_sets_own(tmp_path: Path, caches: Path) -> None:
    """A row that names a local file instead of holding a picture does not get at it: neither at
    one of the user's nor at the access token that lies beside the downloads."""
    private = tmp_path / "private.png"
    token = caches / "token"
    token.parent.mkdir()
    for path in (private, token):
        path.write_bytes(encoded())
    pictures: list[Any] = [
        {"bytes": encoded(), "path": None},
        {"bytes": None, "path": str(private)},
        {"bytes": None, "path": str(token)},
        {"bytes": None, "path": "../../token"},
        None,
    ]
    catalog, ledger = read(write_data_set(tmp_path / SOURCE, pictures))
    outside = ["picture_outside_folder"]
    assert codes(ledger) == [[], outside, outside, outside, ["missing_picture"]]
    assert len(catalog.rows) == 1
    assert not list((ledger.quarantine / "pictures").iterdir())


def test_files_that_came_with_the_data_set(tmp_path: Path, caches: Path) -> None:
    """A data set of plain files lies in the Hub's cache, by links; archives are unpacked beside."""
    repo = caches / "hub" / "datasets--owner--shop"
    blob, link = repo / "blobs" / "abc", repo / "snapshots" / "0000" / "a.png"
    unpacked = caches / "datasets" / "downloads" / "extracted" / "def" / "b.png"
    for path in (blob, link, unpacked):
        path.parent.mkdir(parents=True)
    blob.write_bytes(encoded())
    link.symlink_to(blob)
    unpacked.write_bytes(encoded("blue"))
    pictures = [{"bytes": None, "path": str(path)} for path in (link, unpacked)]
    catalog, ledger = read(write_data_set(tmp_path / SOURCE, pictures))
    assert codes(ledger) == [[], []]
    assert [catalog.pictures(row) for row in (0, 1)] == [[encoded()], [encoded("blue")]]


@pytest.mark.parametrize("nested", ["list", "struct"])
def test_nested_pictures(tmp_path: Path, nested: str) -> None:
    """Image features in lists and structs come undecoded too."""
    from datasets import Image, List

    pictures = [{"bytes": encoded(colour), "path": None} for colour in ("red", "blue")]
    if nested == "list":
        feature, cell, column = List(Image()), pictures, "image"
    else:
        feature = {"front": Image(), "more": [Image()]}
        cell, column = {"front": pictures[0], "more": pictures[1:]}, ["image.front", "image.more.0"]
    data = write_data_set(
        tmp_path / SOURCE,
        [cell],
        feature,
        columns=COLUMNS | {"image": column},
        contract={"pictures": {"max_count": 2}},
    )
    catalog, _ = read(data)
    assert catalog.pictures(0) == [encoded("red"), encoded("blue")]


def test_broken_rows_are_in_the_quarantine(tmp_path: Path) -> None:
    """With the bytes that could not be decoded."""
    broken = encoded()[:40]
    data = write_data_set(tmp_path / SOURCE, [{"bytes": broken, "path": "a.png"}])
    catalog, ledger = read(data)
    assert codes(ledger) == [["picture_unreadable"]]
    assert (ledger.quarantine / "pictures/0000001-1.png").read_bytes() == broken
    assert len(catalog.rows) == 0


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    """Before any row is read."""
    data = write_data_set(tmp_path / SOURCE, [{"bytes": encoded(), "path": None}])
    other = data.model_copy(update={"columns": COLUMNS | {"name": "title"}})
    with pytest.raises(UserError, match=r"no column 'title'.*'Product Name'"):
        read(other)
