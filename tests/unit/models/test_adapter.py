"""An adapter's folder holds the adapter's weights and nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from tests.unit.conftest import Demo
from vlmtune.models.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Adapter,
    AdapterRecord,
    BaseWeightsInAdapter,
    check_adapter_folder,
)
from vlmtune.models.base_model import BaseModelRef

LORA = "base_model.model.layers.0.q_proj.lora_A.weight"


def make_adapter(folder: Path, *keys: str, **config: Any) -> Path:
    """An adapter with weights of the given names."""
    folder.mkdir(exist_ok=True)
    weights = {key: numpy.zeros((2, 2), dtype=numpy.float32) for key in (LORA, *keys)}
    save_file(weights, folder / ADAPTER_WEIGHTS)
    (folder / ADAPTER_CONFIG).write_text(json.dumps({"r": 2} | config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_clean_adapter_passes(tmp_path: Path) -> None:
    """Weights, config and processor."""
    check_adapter_folder(make_adapter(tmp_path))


@pytest.mark.parametrize("missing", [ADAPTER_WEIGHTS, ADAPTER_CONFIG])
def test_missing_part(tmp_path: Path, missing: str) -> None:
    """A folder that lacks a part is no adapter."""
    (make_adapter(tmp_path) / missing).unlink()
    with pytest.raises(ValueError, match=f"is no adapter: {missing} is missing"):
        check_adapter_folder(tmp_path)


def test_base_weight_is_refused(tmp_path: Path) -> None:
    """A single weight of the base among the adapter's is found by its name."""
    make_adapter(tmp_path, "model.layers.0.q_proj.weight")
    with pytest.raises(BaseWeightsInAdapter, match=r"base weight model\.layers\.0\.q_proj\.weight"):
        check_adapter_folder(tmp_path)


def test_weights_that_were_trained_along_pass(tmp_path: Path) -> None:
    """Modules and biases that the LoRA options train are the adapter's own."""
    head, bias = "base_model.model.lm_head.weight", "base_model.model.layers.0.q_proj.bias"
    check_adapter_folder(make_adapter(tmp_path, head, modules_to_save=["lm_head"]))
    check_adapter_folder(make_adapter(tmp_path, bias, bias="all"))
    for key in (head, bias):
        with pytest.raises(BaseWeightsInAdapter):
            check_adapter_folder(make_adapter(tmp_path, key, modules_to_save=None, bias="none"))


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "training_args.bin",
        "sub/optimizer.pt",
        "state.pth",
        "state.pkl",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        f"sub/{ADAPTER_WEIGHTS}",
    ],
)
def test_other_weights_are_refused(tmp_path: Path, name: str) -> None:
    """Pickles and further safetensors, in sub-folders too."""
    path = make_adapter(tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(BaseWeightsInAdapter, match=Path(name).name):
        check_adapter_folder(tmp_path)


def test_content_hash(tmp_path: Path) -> None:
    """Weights and adapter config count, the processor beside them and the record do not."""
    record = AdapterRecord(base=BaseModelRef(id="shop/base", commit="c" * 40))
    adapter = Adapter(folder=make_adapter(tmp_path), record=record)
    before = adapter.content_hash
    (tmp_path / "tokenizer.json").write_text("{} ")
    assert adapter.in_run("some-run").content_hash == before
    assert adapter.in_run("some-run").record.mlflow_run_id == "some-run"
    make_adapter(tmp_path, r=3)
    assert adapter.content_hash != before


def test_no_file_says_where_its_base_lies(trained: tuple[Demo, Adapter]) -> None:
    """The base of this one is named by an absolute path, which means nothing elsewhere."""
    demo, adapter = trained
    base = Path(demo.base.id)
    assert base.is_absolute()
    config = json.loads((adapter.folder / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == base.name == "model"
    assert config["revision"] == demo.base.revision
    for path in adapter.folder.rglob("*"):
        if path.suffix != ".safetensors":
            assert str(base.parent) not in path.read_text(), path
