"""The library on a real GPU: quantise, train, describe and merge, without ZenML or MLflow.

python -m pytest -m gpu
"""

from pathlib import Path

import pytest

from vlmtune.catalog.loading import load_catalog
from vlmtune.catalog.source import catalog_version
from vlmtune.config.loading import load_config
from vlmtune.models.base_model import resolve_base_model
from vlmtune.prompting import format_examples, with_pictures

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.gpu


def test_the_demo_learns_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss falls, the house words are learned, and the merged model says the same."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from vlmtune.evaluation.generation import describe
    from vlmtune.models.adapter import attach_adapter
    from vlmtune.models.merging import merge
    from vlmtune.models.quantized import load_model, quantize
    from vlmtune.training.plan import TrainingPlan
    from vlmtune.training.trainer import train_adapter

    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "demo.yaml", ["model.device=cuda"])
    catalog, ledger = load_catalog(config.data, catalog_version(config.data))
    examples = format_examples(catalog, ledger, config.data, config.prompt)
    held_out = with_pictures(examples.held_out, catalog)
    base = resolve_base_model(config.model)
    quantized = quantize(base, config.model, config.quantization)
    assert quantized.model is not None and quantized.model.device.type == "cuda"
    losses = {}

    def keep_losses(metrics: dict[str, float], step: int) -> None:
        losses.update({step: metrics["eval_loss"]} if "eval_loss" in metrics else {})

    adapter = train_adapter(
        quantized.model,
        quantized.processor,
        base,
        with_pictures(examples.train, catalog),
        held_out,
        TrainingPlan(config.seed, config.lora, config.training, "cuda", tmp_path / "training"),
        keep_losses,
    )
    assert losses[200] < losses[50] / 2
    fresh = load_model(base.id, base.commit, config.model, config.quantization)
    tuned = attach_adapter(fresh, adapter)
    result = merge(adapter, config.model, held_out, tmp_path / "merged")
    assert result.folder is not None, result.record.reason
    merged = load_model(str(result.folder), None, config.model, quantization={})
    words = config.evaluation.terms["colour"]
    for model in (tuned, merged):
        written, _ = describe(model, quantized.processor, held_out, config.generation, 64, "tuned")
        right = [
            next(word for word in words if word in row["completion"][0]["content"]) in each.text
            for row, each in zip(examples.held_out, written, strict=True)
        ]
        assert sum(right) / len(right) >= 0.9


def test_fp8_trains_in_packs_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, through the product's own trainer: the loss falls as it should."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from vlmtune.models.fp8 import has_fp8
    from vlmtune.models.quantized import quantize
    from vlmtune.training.plan import TrainingPlan
    from vlmtune.training.trainer import train_adapter

    if not has_fp8(torch.device("cuda")):
        pytest.skip("this GPU multiplies no fp8")
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "demo.yaml", ["model.device=cuda"])
    catalog, ledger = load_catalog(config.data, catalog_version(config.data))
    examples = format_examples(catalog, ledger, config.data, config.prompt)
    base = resolve_base_model(config.model)
    quantized = quantize(base, config.model, config.quantization)
    training = {**config.training, "max_steps": 40, "save_strategy": "no", "eval_strategy": "no"}
    plan = TrainingPlan(config.seed, config.lora, training, "cuda", tmp_path / "training", fp8=True)
    assert quantized.model is not None
    adapter = train_adapter(
        quantized.model,
        quantized.processor,
        base,
        with_pictures(examples.train, catalog),
        with_pictures(examples.held_out, catalog),
        plan,
        lambda *_: None,
    )
    losses = [log["loss"] for log in adapter.record.log_history if "loss" in log]
    assert adapter.record.layout["packed"]
    assert losses[-1] < losses[0] / 2
