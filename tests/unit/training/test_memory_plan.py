"""The memory plan against measured peaks, and what it picks for cards of several sizes."""

from typing import Any

import pytest
from transformers import AutoConfig

from benchmarks.seven_b import QUANTIZATION, shapes
from tests.unit.conftest import ROOT
from vlmtune.config.training import CPU_PACK_TOKENS
from vlmtune.training import memory_plan
from vlmtune.training.memory_plan import GIB, ModelShape, pick, plan_memory, shape_of

LORA = {"r": 8, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def seven_billion() -> Any:
    """Qwen2-VL-7B's config."""
    return shapes()


@pytest.fixture
def shape(seven_billion: Any, monkeypatch: pytest.MonkeyPatch) -> ModelShape:
    """Its shape where the attention copies keys, as in torch 2.11."""
    monkeypatch.setattr(memory_plan, "shares_keys", lambda: False)
    return shape_of(seven_billion, QUANTIZATION, LORA, kernels=True)


@pytest.mark.parametrize(
    ("tokens", "checkpointing", "cached", "measured"),
    [
        (9_517, True, True, 9.22),
        (9_517, False, True, 40.95),
        (4_812, True, False, 8.58),
        (4_812, False, False, 24.70),
        (9_517, False, False, 42.22),
        (18_999, False, False, 77.47),
    ],
)
def test_plan_and_measurement(
    shape: ModelShape, tokens: int, checkpointing: bool, cached: bool, measured: float
) -> None:
    """Peaks in GiB on an H200, printed by benchmarks/train_qlora.py."""
    planned = plan_memory(shape, tokens, checkpointing, cached).peak_gib
    assert planned == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("card", [16, 24, 48, 80, 140])
def test_what_auto_picks_fits(shape: ModelShape, card: int) -> None:
    """A pack of some size, in nine tenths of the card; checkpointing only where it must be."""
    tokens, checkpointing = pick(shape, card * GIB, "auto", "auto")
    assert tokens >= 4_096
    assert plan_memory(shape, tokens, checkpointing, cached=False).peak_gib <= 0.9 * card
    assert checkpointing == (card <= 24)


def test_what_is_configured_is_kept(shape: ModelShape) -> None:
    """Also where the plan would do otherwise."""
    assert pick(shape, 24 * GIB, 3_000, False) == (3_000, False)
    assert pick(shape, 24 * GIB, "auto", True)[1] is True
    assert pick(None, None, "auto", "auto") == (CPU_PACK_TOKENS, False)


def test_the_adapter_is_counted() -> None:
    """As PEFT makes it, on the demo's model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(ROOT / "demo" / "model")
    lora = {"r": 16, "target_modules": r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"}
    with torch.device("meta"):
        model = get_peft_model(AutoModelForImageTextToText.from_config(config), LoraConfig(**lora))
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert shape_of(config, QUANTIZATION, lora, kernels=False).adapter == trainable


def test_fp8_takes_a_byte_a_weight(seven_billion: Any, shape: ModelShape) -> None:
    """Twice the memory of NF4 for the weights of the decoder."""
    fp8 = shape_of(seven_billion, QUANTIZATION, LORA, kernels=True, fp8=True)
    assert fp8.weights - shape.weights == pytest.approx(0.484 * shape.multiplied, rel=0.02)
