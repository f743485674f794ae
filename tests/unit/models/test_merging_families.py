"""Merging knows no model family: tiny models of other ones, with random weights and adapters."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from tests.unit import families
from tests.unit.training.test_packed_families import CATALOG_ROWS, other_processor
from vlmtune.config.model import ModelConfig
from vlmtune.models.adapter import Adapter, AdapterRecord, save_adapter
from vlmtune.models.base_model import resolve_base_model
from vlmtune.models.merging import merge


def rows() -> Dataset:
    """Two with pictures and one without."""
    pictures = [row["images"] for row in CATALOG_ROWS]
    table = [{**row, "images": number} for number, row in enumerate(CATALOG_ROWS)]
    return Dataset.from_list(table).with_transform(
        lambda batch: {**batch, "images": [pictures[row] for row in batch["images"]]}
    )


@pytest.mark.parametrize(("kind", "picture"), [("pixtral", "[IMG]"), ("llava", "<image>")])
def test_other_families(
    kind: str, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged, read back and found to be the same."""
    torch.manual_seed(0)
    processor = other_processor(kind)
    monkeypatch.setitem(families.TEXT, "vocab_size", len(processor.tokenizer))
    token = processor.tokenizer.convert_tokens_to_ids(picture)
    monkeypatch.setattr(families, "PICTURE", token)
    model = getattr(families, kind)().bfloat16()
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    config = ModelConfig(id=str(tmp_path / "base"), device="cpu")
    base = resolve_base_model(config)
    lora = LoraConfig(r=4, init_lora_weights=False, target_modules=r".*language_model.*_proj")
    save_adapter(get_peft_model(model, lora), processor, base, tmp_path / "adapter")
    adapter = Adapter(tmp_path / "adapter", AdapterRecord(base=base))
    result = merge(adapter, config, rows(), tmp_path / "merged")
    assert (result.record.status, result.record.reason) == ("merged", "")
