"""Decoding by a captured step on a real GPU writes what plain decoding writes.

python -m pytest -m gpu
"""

from pathlib import Path

import pytest

from vlmtune.catalog.loading import load_catalog
from vlmtune.catalog.source import catalog_version
from vlmtune.config.loading import load_config
from vlmtune.prompting import format_prompts, with_pictures

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.gpu


def test_captured_decoding_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all texts: in bf16 a rounding may tip the scales here and there. The step is captured
    once for all full batches and once for the last; afterwards the model is as it was."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from vlmtune.evaluation import generation
    from vlmtune.models.processor import load_processor
    from vlmtune.models.quantized import load_model
    from vlmtune.models.step_graph import StepGraph

    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "demo.yaml", ["model.device=cuda", "data.max_rows=100"])
    data = config.data.without_descriptions()
    catalog, ledger = load_catalog(data, catalog_version(data))
    rows = with_pictures(format_prompts(catalog, ledger, config.prompt, tmp_path), catalog)
    model = load_model(config.model.id, None, config.model, quantization={})
    processor = load_processor(config.model.id, None, config.model)
    captured, capture = [], StepGraph._capture

    def watched(self: StepGraph, *args: object) -> None:
        capture(self, *args)
        captured.append(self)

    monkeypatch.setattr(StepGraph, "_capture", watched)
    forward, before = model.forward, set(model.__dict__)
    graph, _ = generation.describe(model, processor, rows, config.generation, 32, "captured")
    assert len(captured) == 2
    assert model.forward == forward and set(model.__dict__) == before
    monkeypatch.setattr(generation, "capturing_pays", lambda *_: False)
    plain, _ = generation.describe(model, processor, rows, config.generation, 32, "plain")
    assert len(captured) == 2
    assert sum(a.text == b.text for a, b in zip(plain, graph, strict=True)) >= 95
