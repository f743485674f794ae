"""A ZenML store for the tests of this process, and small artifacts to store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.source import catalog_version, load_catalog
from vlmtune.config.data import DataConfig


@pytest.fixture
def catalog(make_catalog: Callable[..., Path]) -> Catalog:
    """Three rows with pictures."""
    data = DataConfig(
        source=str(make_catalog()),
        columns={
            "image": "file_name",
            "name": "Product Name",
            "category": "Category",
            "description": "description",
        },
    )
    return load_catalog(data, catalog_version(data))


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[type, Any], Any]:
    """Save an object with a materializer and load it again, as two steps would."""

    def round_trip(materializer: type, data: Any) -> Any:
        folder = tmp_path / "artifact"
        folder.mkdir()
        materializer(uri=str(folder)).save(data)
        return materializer(uri=str(folder)).load(type(data))

    return round_trip
