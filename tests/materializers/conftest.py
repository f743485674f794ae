"""A ZenML store for the tests of this process, and small artifacts to store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.catalog.loading import load_catalog
from vlmtune.catalog.source import catalog_version
from vlmtune.config.data import DataConfig, HeldOutConfig
from vlmtune.models.adapter import Adapter, AdapterRecord
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.merge_record import MergeCheck, MergeRecord, MergeResult
from vlmtune.revision import hash_files


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


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """A minimal but real adapter folder."""
    folder = tmp_path / "trained"
    folder.mkdir()
    weights = {"base_model.model.q_proj.lora_A.weight": numpy.ones((2, 4), dtype="float32")}
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    base = BaseModelRef(id="owner/model", commit="0" * 40)
    return Adapter(folder=folder, record=AdapterRecord(base=base, train_rows=3))


@pytest.fixture
def merged(tmp_path: Path, adapter: Adapter) -> MergeResult:
    """A minimal merged model, with a check that was met."""
    folder = tmp_path / "merged"
    folder.mkdir()
    save_file({"q_proj.weight": numpy.ones((4, 4))}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    record = MergeRecord(
        status="merged",
        base=adapter.record.base,
        adapter_hash=adapter.content_hash,
        checks=[MergeCheck(name="divergence", wanted="at most 0.002", found="1e-05", met=True)],
        files=hash_files(folder),
    )
    return MergeResult(record, folder)
