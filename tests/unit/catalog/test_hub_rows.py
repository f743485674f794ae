"""Rows of a data set as the Hub serves them: parquet, read by the datasets library."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from vlmtune.catalog.source import _CheckedRows, _hub_rows
from vlmtune.config.data import DataConfig
from vlmtune.errors import UserError

COLUMNS = {"image": "image", "name": "Product Name", "description": "description"}


def encoded() -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Picture.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


def write_data_set(folder: Path, pictures: list[Any]) -> DataConfig:
    """A parquet data set in the Hub's layout, with one row a picture."""
    from datasets import Dataset, Features, Image, Value

    features = Features(
        {"image": Image(), "Product Name": Value("string"), "description": Value("string")}
    )
    count = len(pictures)
    rows = {
        "image": pictures,
        "Product Name": [f"Mug {number}" for number in range(count)],
        "description": ["A mug."] * count,
    }
    folder.mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return DataConfig(source=str(folder), columns=COLUMNS)


def read(data: DataConfig) -> list[dict[str, Any]]:
    """All rows that can be used; raises what is wrong with the others."""
    checked = _CheckedRows(_hub_rows(data, None), data)
    rows = list(checked)
    checked.raise_problems()
    return rows


def test_pictures_stay_the_bytes_they_are(tmp_path: Path) -> None:
    """Nothing is decoded and encoded again on the way."""
    picture = encoded()
    data = write_data_set(tmp_path / "data", [{"bytes": picture, "path": "a.png"}])
    (row,) = read(data)
    assert row["image"]["bytes"] == picture
    assert (row["name"], row["description"]) == ("Mug 0", "A mug.")


def test_a_path_of_this_machine_is_not_the_data_sets_own(tmp_path: Path) -> None:
    """A row that names a local file instead of holding a picture does not get at it."""
    private = tmp_path / "private.png"
    private.write_bytes(encoded())
    data = write_data_set(
        tmp_path / "data",
        [{"bytes": encoded(), "path": None}, {"bytes": None, "path": str(private)}, None],
    )
    with pytest.raises(UserError) as caught:
        read(data)
    text = str(caught.value)
    assert "2 of 3 rows" in text
    assert "row 2: picture" in text and "lies outside" in text
    assert "row 3: no picture is named" in text


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    """Before any row is read."""
    data = write_data_set(tmp_path / "data", [{"bytes": encoded(), "path": None}])
    other = data.model_copy(update={"columns": COLUMNS | {"name": "title"}})
    with pytest.raises(UserError, match=r"no column 'title'.*'Product Name'"):
        read(other)
