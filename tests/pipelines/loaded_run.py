"""Loading a run's artifacts from their folders, without ZenML."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class LoadedRun:
    """The tuned model of a run with everything needed to ask it something."""

    config: Any
    catalog: Any
    examples: Any
    tuned: Any
    processor: Any


def load_models(summary: dict[str, Any]) -> LoadedRun:
    """Load what the artifacts of a run hold."""
    from datasets import load_from_disk

    from vlmtune.catalog.catalog import Catalog
    from vlmtune.config.loading import load_config
    from vlmtune.models.adapter import Adapter, AdapterRecord, attach_adapter
    from vlmtune.models.base_model import BaseModelRef
    from vlmtune.models.quantized import QuantizedModel
    from vlmtune.prompting import Examples

    folder = {name: Path(entry["uri"]) for name, entry in summary["artifacts"].items()}
    config = load_config(ROOT / "configs" / "demo.yaml")
    record = json.loads((folder["quantized_model"] / "record.json").read_text())
    quantized = QuantizedModel(
        base=BaseModelRef.model_validate(record["base"]),
        quantization=record["quantization"],
        folder=folder["quantized_model"],
    )
    model, processor = quantized.load(config.model)
    adapter = Adapter(
        folder=folder["adapter"] / "adapter",
        record=AdapterRecord.model_validate_json((folder["adapter"] / "record.json").read_text()),
    )
    return LoadedRun(
        config=config,
        catalog=Catalog(rows=load_from_disk(folder["catalog"] / "rows"), source="", version=""),
        examples=Examples(
            train=load_from_disk(folder["examples"] / "train"),
            held_out=load_from_disk(folder["examples"] / "held_out"),
        ),
        tuned=attach_adapter(model, adapter),
        processor=processor,
    )
