"""Compiled decoding on a real GPU writes what uncompiled decoding writes.

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


def test_compiled_decoding_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all texts: in bf16 a rounding may tip the scales here and there. The last batch is
    not full, and the step is compiled once for all."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from vlmtune.evaluation import decoding
    from vlmtune.evaluation.generation import describe
    from vlmtune.models.processor import load_processor
    from vlmtune.models.quantized import load_model

    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "demo.yaml", ["model.device=cuda", "data.max_rows=100"])
    data = config.data.without_descriptions()
    catalog, ledger = load_catalog(data, catalog_version(data))
    rows = with_pictures(format_prompts(catalog, ledger, config.prompt, tmp_path), catalog)
    model = load_model(config.model.id, None, config.model, quantization={})
    processor = load_processor(config.model.id, None, config.model)
    plain, _ = describe(model, processor, rows, config.generation, 32, "uncompiled")
    monkeypatch.setattr(decoding, "WORTH_COMPILING", 1)
    assert decoding.compiling_pays(model, config.generation, len(rows))
    torch._dynamo.utils.counters.clear()
    compiled, _ = describe(model, processor, rows, config.generation, 32, "compiled")
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert sum(map(str.__eq__, plain, compiled)) >= 95
