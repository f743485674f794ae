"""The model that describes: merged, or the base with its adapter, and what it is called."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.conftest import Demo
from vlmtune.config.loading import load_config
from vlmtune.models.adapter import Adapter, AdapterRecord, save_adapter
from vlmtune.models.base_model import resolve_base_model
from vlmtune.models.describer import Describer, load_describer
from vlmtune.models.merge_record import MergeRecord, MergeResult
from vlmtune.models.merging import merge
from vlmtune.models.quantized import quantize

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Adapter, Path]:
    """Config, quantised base and an adapter that changes it."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("describer")
    config = load_config(ROOT / "configs" / "demo.yaml", [f"model.id={ROOT / 'demo' / 'model'}"])
    base = resolve_base_model(config.model)
    quantized = quantize(base, config.model, config.quantization)
    quantized.model.save_pretrained(folder / "base")
    quantized.processor.save_pretrained(folder / "base")
    tuned = get_peft_model(quantized.model, LoraConfig(r=4, target_modules=["q_proj"]))
    torch.manual_seed(0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_adapter(tuned, quantized.processor, base, folder / "adapter")
    adapter = Adapter(folder / "adapter", AdapterRecord(base=base))
    stored = replace(quantized, folder=folder / "base", model=None, processor=None)
    return config, stored, adapter, folder


def test_the_merged_model_is_loaded(trained: tuple[Demo, Adapter], tmp_path: Path) -> None:
    """Its own weights and processor, and nothing of the base."""
    demo, adapter = trained
    merged = merge(adapter, demo.config.model, demo.held_out, tmp_path / "merged")
    model, processor, name = load_describer(Describer("finetune-1", merged), demo.config.model)
    assert not hasattr(model, "peft_config") and not getattr(model, "is_quantized", False)
    assert processor.tokenizer.padding_side == "left"
    assert name == f"merged model of finetune-1 (adapter {adapter.content_hash[:12]})"


def not_merged(adapter: Adapter) -> MergeResult:
    """Word that there is no merged model."""
    record = MergeRecord(
        status="skipped", base=adapter.record.base, adapter_hash=adapter.content_hash
    )
    return MergeResult(record)


def test_without_one_the_base_carries_the_adapter(parts: tuple[Any, Any, Adapter, Path]) -> None:
    """In 4 bits, and called so."""
    config, quantized, adapter, _ = parts
    describer = Describer("finetune-1", not_merged(adapter), quantized, adapter)
    model, processor, name = load_describer(describer, config.model)
    tokens = processor.tokenizer("Describe this.", return_tensors="pt")
    with torch.no_grad():
        tuned = model(**tokens).logits
        with model.disable_adapter():
            assert not torch.equal(tuned, model(**tokens).logits)
    assert type(model.get_base_model().model.language_model.layers[0].mlp.up_proj).__name__ == (
        "Linear4bit"
    )
    assert name.startswith("4-bit model with its adapter of finetune-1")


def test_identities_tell_models_apart(parts: tuple[Any, Any, Adapter, Path]) -> None:
    """Merged or not, which adapter, which base and how it was quantised; not the run's name."""
    _, quantized, adapter, folder = parts
    skipped = not_merged(adapter)
    four_bit = Describer("finetune-1", skipped, quantized, adapter)
    record = skipped.record.model_copy(update={"adapter_hash": "b" * 64})
    others = [
        replace(four_bit, merged=replace(skipped, folder=folder)),
        replace(four_bit, merged=replace(skipped, record=record)),
        replace(four_bit, quantized=replace(quantized, quantization={"load_in_4bit": True})),
    ]
    assert len({each.identity for each in [four_bit, *others]}) == 4
    assert replace(four_bit, run="finetune-2").identity == four_bit.identity
