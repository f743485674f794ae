"""A merged model is proven on the demo, and each way in which it could go wrong is found."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from tests.unit.conftest import Demo
from vlmtune.models import merged_weights, merging
from vlmtune.models.adapter import ADAPTER_WEIGHTS, Adapter
from vlmtune.models.base_model import resolve_base_model
from vlmtune.models.merge_record import MergeResult
from vlmtune.models.merging import merge
from vlmtune.revision import hash_files

WEIGHTS = "model.safetensors"
CHECKS = [
    *("adapter", "weights", "chat template", "processor", "served prompt", "generation config"),
    *("stored weights", "divergence"),
]


def merge_into(trained: tuple[Demo, Adapter], folder: Path) -> MergeResult:
    """Merge, and check on the demo's held-out rows."""
    demo, adapter = trained
    return merge(
        adapter, demo.config.model, demo.held_out, folder, generation=demo.config.generation
    )


def unmet(result: MergeResult) -> list[str]:
    """Names of the checks that were not met."""
    return [check.name for check in result.record.checks if not check.met]


def change_weights(file: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Rewrite a file of weights."""
    weights = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def with_weights(
    trained: tuple[Demo, Adapter],
    folder: Path,
    change: Callable[[str, torch.Tensor], torch.Tensor],
) -> tuple[Demo, Adapter]:
    """The demo with a changed copy of its adapter."""
    demo, adapter = trained
    shutil.copytree(adapter.folder, folder)
    change_weights(folder / ADAPTER_WEIGHTS, change)
    return demo, replace(adapter, folder=folder)


def before_reading_back(
    monkeypatch: pytest.MonkeyPatch, loader: str, interfere: Callable[[Path], Any]
) -> None:
    """Do something to the merged model's folder once it is written."""
    load = getattr(merging, loader)

    def interfered(name: str, *arguments: Any, **options: Any) -> Any:
        if name.endswith("merged"):
            interfere(Path(name))
        return load(name, *arguments, **options)

    monkeypatch.setattr(merging, loader, interfered)


def test_the_merged_model_is_the_tuned_model(trained: tuple[Demo, Adapter], tmp_path: Path) -> None:
    """Every check is met, every file is recorded, and others can load it."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    demo, adapter = trained
    before = hash_files(Path(demo.base.id))
    result = merge_into(trained, tmp_path / "merged")
    assert hash_files(Path(demo.base.id)) == before  # whose files were mapped, with noise added
    assert [check.name for check in result.record.checks] == CHECKS
    assert unmet(result) == []
    assert (result.record.status, result.record.reason) == ("merged", "")
    assert result.record.adapter_hash == adapter.content_hash
    assert result.folder is not None
    assert result.record.files == hash_files(result.folder)
    assert {WEIGHTS, "config.json", "tokenizer.json"} <= result.record.files.keys()
    assert all(
        tensor.dtype == torch.bfloat16 for tensor in load_file(result.folder / WEIGHTS).values()
    )
    AutoModelForImageTextToText.from_pretrained(result.folder)
    AutoProcessor.from_pretrained(result.folder)
    change_a_bit(result.folder / WEIGHTS)  # which no output would tell of
    changed = dict(hash_files(result.folder).items() ^ result.record.files.items())
    assert changed.keys() == {WEIGHTS}


def change_a_bit(file: Path) -> None:
    """Of a file's last byte."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_skipped(trained: tuple[Demo, Adapter], tmp_path: Path) -> None:
    """Nothing is loaded or written."""
    demo, adapter = trained
    result = merge(adapter, demo.config.model, demo.held_out, tmp_path / "merged", "not wanted")
    assert (result.record.status, result.record.reason) == ("skipped", "not wanted")
    assert result.folder is None and result.record.checks == []
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(("value", "found"), [(0.0, "found 0, with 0.0% of"), (torch.nan, "nan")])
def test_an_adapter_that_does_nothing_is_found(
    trained: tuple[Demo, Adapter], tmp_path: Path, value: float, found: str
) -> None:
    """Weights of zeros, and ones that are no numbers: no model is written."""
    broken = with_weights(
        trained,
        tmp_path / "broken",
        lambda name, tensor: torch.full_like(tensor, value) if "lora_B" in name else tensor,
    )
    result = merge_into(broken, tmp_path / "merged")
    assert result.record.status == "failed" and unmet(result) == ["adapter"]
    assert found in result.record.reason
    assert result.folder is None and result.record.files == {}
    assert not (tmp_path / "merged").exists()


def spoil_merging(monkeypatch: pytest.MonkeyPatch, chosen: str, factor: float) -> None:
    """Let PEFT merge layers of this name with another scale."""
    merge_layers = merged_weights.merge_layers

    def spoiled(model: Any, folder: Path) -> Any:
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and chosen in name:
                module.scaling["default"] *= factor
        return merge_layers(model, folder)

    monkeypatch.setattr(merged_weights, "merge_layers", spoiled)


@pytest.mark.parametrize(
    ("chosen", "factor", "wrong"),
    [
        (".layers.0.", 0.0, 7),
        (".layers.2.", 0.0, 7),
        (".layers.3.", 0.0, 7),
        (".layers.2.self_attn.q_proj", -1.0, 1),
        ("layers", 2.0, 28),
    ],
    ids=["first dropped", "middle dropped", "last dropped", "sign flipped", "doubled"],
)
def test_a_wrong_merge_is_found(
    trained: tuple[Demo, Adapter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: str,
    factor: float,
    wrong: int,
) -> None:
    """Even where outputs hardly tell; nothing is written."""
    spoil_merging(monkeypatch, chosen, factor)
    result = merge_into(trained, tmp_path / "merged")
    assert result.record.status == "failed" and unmet(result) == ["weights"]
    assert f"found {28 - wrong} of 28 layers, not in base_model" in result.record.reason
    assert result.folder is None and not (tmp_path / "merged").exists()


def test_a_sharp_model_merges(trained: tuple[Demo, Adapter], tmp_path: Path) -> None:
    """Rounding noise is larger where outputs are sharper, and so is what an adapter changes."""
    demo, adapter = trained
    copy = Path(shutil.copytree(demo.base.id, tmp_path / "sharp"))
    last = "model.norm.weight"  # before the output layer
    change_weights(copy / WEIGHTS, lambda name, tensor: tensor * (5 if name.endswith(last) else 1))
    model = demo.config.model.model_copy(update={"id": str(copy)})
    record = adapter.record.model_copy(update={"base": resolve_base_model(model)})
    result = merge(replace(adapter, record=record), model, demo.held_out, tmp_path / "merged")
    divergence = float(result.record.checks[-1].found.partition(",")[0])
    assert divergence > 0.002  # nats: what was once the bound
    assert result.record.status == "merged", result.record.reason


def zero_a_projection(folder: Path) -> None:
    """Change a single tensor of the merged model."""
    change_weights(
        folder / WEIGHTS,
        lambda name, tensor: (
            tensor * 0 if name.endswith("layers.1.mlp.down_proj.weight") else tensor
        ),
    )


def test_a_changed_tensor_is_found(
    trained: tuple[Demo, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was changed on disk before the model was read back; nothing of it is kept."""
    before_reading_back(monkeypatch, "load_model", zero_a_projection)
    result = merge_into(trained, tmp_path / "merged")
    assert result.record.status == "failed" and unmet(result) == ["stored weights", "divergence"]
    assert "mlp.down_proj.weight; divergence: wanted a mean KL" in result.record.reason
    assert result.folder is None and not (tmp_path / "merged").exists()


def test_base_weights_in_the_files_are_found(
    trained: tuple[Demo, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of a layer's merged ones."""
    demo, _ = trained
    base = load_file(Path(demo.base.id) / WEIGHTS)

    def unmerge(folder: Path) -> None:
        change_weights(
            folder / WEIGHTS,
            lambda name, tensor: base[name].clone() if ".layers.3." in name else tensor,
        )

    before_reading_back(monkeypatch, "load_model", unmerge)
    assert "stored weights" in unmet(merge_into(trained, tmp_path / "merged"))


def test_another_computation_is_found(
    trained: tuple[Demo, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very weights, but a config with which they mean something else."""

    def change_epsilon(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["rms_norm_eps"] = 1.0
        (folder / "config.json").write_text(json.dumps(config))

    before_reading_back(monkeypatch, "load_model", change_epsilon)
    assert unmet(merge_into(trained, tmp_path / "merged")) == ["divergence"]


def test_another_chat_template_is_found(
    trained: tuple[Demo, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The served prompt would hold other tokens than the one that was trained on."""

    def greet(folder: Path) -> None:
        template = folder / "chat_template.jinja"
        template.write_text("Hello! " + template.read_text())

    before_reading_back(monkeypatch, "load_processor", greet)
    result = merge_into(trained, tmp_path / "merged")
    assert unmet(result) == ["chat template", "processor", "served prompt"]
    assert result.record.status == "failed"


def with_sampling_base(demo: Demo, folder: Path) -> Any:
    """A copy of the base that is published with options of sampling, as many are."""
    from vlmtune.models.base_model import resolve_base_model

    shutil.copytree(demo.base.id, folder)
    file = folder / "generation_config.json"
    own = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    file.write_text(json.dumps(json.loads(file.read_text()) | own | {"repetition_penalty": 1.05}))
    return resolve_base_model(demo.config.model.model_copy(update={"id": str(folder)}))


def test_the_merged_model_is_asked_as_the_gate_asks(
    trained: tuple[Demo, Adapter], tmp_path: Path
) -> None:
    """Whoever loads it gets the gate's options, and what else the base brings; not its sampling."""
    from transformers import GenerationConfig

    demo, adapter = trained
    base = with_sampling_base(demo, tmp_path / "base")
    record = adapter.record.model_copy(update={"base": base})
    asked = {"max_new_tokens": 33, "do_sample": False}
    result = merge(
        replace(adapter, record=record),
        demo.config.model,
        demo.held_out,
        tmp_path / "merged",
        generation=asked,
    )
    assert unmet(result) == [] and result.folder is not None
    stored = json.loads((result.folder / "generation_config.json").read_text())
    del stored["transformers_version"]
    kept = {"eos_token_id": 2040, "pad_token_id": 2041, "repetition_penalty": 1.05}
    assert stored == asked | kept
    loaded = GenerationConfig.from_pretrained(result.folder)
    assert (loaded.do_sample, loaded.temperature, loaded.top_p) == (False, None, None)


def test_the_bases_sampling_is_found(
    trained: tuple[Demo, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options in the files that were read back are compared with those of the gate."""

    def sample(folder: Path) -> None:
        file = folder / "generation_config.json"
        options = json.loads(file.read_text()) | {"do_sample": True, "temperature": 0.7}
        file.write_text(json.dumps(options))

    before_reading_back(monkeypatch, "load_model", sample)
    result = merge_into(trained, tmp_path / "merged")
    assert unmet(result) == ["generation config"]
    assert "other values of do_sample, temperature" in result.record.reason
    assert result.folder is None


def test_other_picture_limits_are_found(
    trained: tuple[Demo, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are saved count, not those that this run's config would set again."""

    def enlarge(folder: Path) -> None:
        file = folder / "processor_config.json"
        config = json.loads(file.read_text())
        config["image_processor"]["size"] = {"shortest_edge": 112**2, "longest_edge": 168**2}
        file.write_text(json.dumps(config))

    before_reading_back(monkeypatch, "load_processor", enlarge)
    demo, adapter = trained
    limits = demo.config.model.model_copy(update={"min_pixels": 84**2, "max_pixels": 84**2})
    result = merge(adapter, limits, demo.held_out, tmp_path / "merged")
    assert unmet(result) == ["processor", "served prompt"]


def test_there_is_never_a_second_model(
    trained: tuple[Demo, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that was merged is gone when the merged one is read back, here in parts."""
    load = merging.load_model
    monkeypatch.setattr(merging, "SHARD_SIZE", "2MB")
    models: list[weakref.ref[Any]] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        assert not [each for each in models if each() is not None]
        model = load(*arguments, **options)
        models.extend(weakref.ref(each) for each in (model, *model.parameters()))
        return model

    monkeypatch.setattr(merging, "load_model", watched)
    result = merge_into(trained, tmp_path / "merged")
    assert result.record.status == "merged"
    assert len(models) > 2
    assert sum(name.endswith(".safetensors") for name in result.record.files) > 1


def test_a_disk_that_fills_up_leaves_nothing(
    trained: tuple[Demo, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are there by then, and the processor is not."""
    from transformers import ProcessorMixin

    def disk_full(*_: Any, **__: Any) -> None:
        assert (tmp_path / "merged" / WEIGHTS).exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ProcessorMixin, "save_pretrained", disk_full)
    with pytest.raises(OSError, match="No space"):
        merge_into(trained, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_folder_with_files_is_refused(trained: tuple[Demo, Adapter], tmp_path: Path) -> None:
    """They are not ours to remove."""
    (tmp_path / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="is not empty"):
        merge_into(trained, tmp_path)
    assert (tmp_path / "precious").exists()
