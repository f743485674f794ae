"""A ZenML store for the tests of this process, and small artifacts to store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.catalog.loading import load_catalog
from vlmtune.catalog.source import catalog_version
from vlmtune.config.data import DataConfig, HeldOutConfig


@pytest.fixture
def read(
    make_catalog: Callable[..., Path], make_rows: Callable[[int], list[dict[str, Any]]]
) -> tuple[Catalog, RowLedger]:
    """Six rows with pictures, and a seventh in quarantine."""
    rows = make_rows(7)
    rows[6]["description"] = ""
    data = DataConfig(
        source=str(make_catalog(rows)),
        columns={
            "image": "file_name",
            "name": "Product Name",
            "category": "Category",
            "description": "description",
        },
        held_out=HeldOutConfig(fraction=0.5),
    )
    return load_catalog(data, catalog_version(data))


@pytest.fixture
def catalog(read: tuple[Catalog, RowLedger]) -> Catalog:
    """The six rows."""
    return read[0]


@pytest.fixture
def ledger(read: tuple[Catalog, RowLedger]) -> RowLedger:
    """What became of all seven."""
    return read[1]


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[type, Any], Any]:
    """Save an object with a materializer and load it again, as two steps would."""

    def round_trip(materializer: type, data: Any) -> Any:
        folder = tmp_path / "artifact"
        folder.mkdir()
        materializer(uri=str(folder)).save(data)
        return materializer(uri=str(folder)).load(type(data))

    return round_trip
