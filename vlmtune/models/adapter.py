"""A LoRA adapter as files: safetensors, processor and an exact word on its base model."""

import hashlib
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from vlmtune.artifact import PICKLE_SUFFIXES, Artifact
from vlmtune.models.base_model import BaseModelRef
from vlmtune.revision import public_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


class AdapterRecord(BaseModel):
    """What made an adapter, and what training it was like.

    Attributes:
        base: the base model it belongs to.
        log_history: the Trainer's log: losses, learning rate, tokens/s by step.
        train_seconds, train_rows, peak_memory_gib: of the training run.
        prepare_seconds: of `train_seconds`, spent on encoding rows and pictures beforehand.
        layout: how rows were packed or padded.
        resumed_from: the step a killed run was resumed at; None for a straight run.
        mlflow_run_id: the MLflow run with the loss curve; None for an untracked run.
    """

    model_config = ConfigDict(frozen=True)

    base: BaseModelRef
    log_history: list[dict[str, Any]] = []
    train_seconds: float = 0.0
    prepare_seconds: float = 0.0
    layout: dict[str, Any] = {}
    train_rows: int = 0
    peak_memory_gib: float = 0.0
    resumed_from: int | None = None
    mlflow_run_id: str | None = None

    def describe(self) -> dict[str, str]:
        """How the training went, for people: label -> text."""
        facts = {"training": f"{self.train_rows} rows in {self.train_seconds:.0f} s"}
        if planned_seconds := self.layout.get("planned_seconds"):
            spent = self.train_seconds - self.prepare_seconds
            facts["training"] += f", of them {spent:.0f} s of steps ({planned_seconds} predicted)"
        if self.layout.get("packed"):
            facts["layout"] = (
                "{packs_per_step} packs a step, of {rows_per_pack} rows and at most "
                "{largest_pack:,} tokens, without padding".format_map(self.layout)
            )
        elif self.layout:
            facts["layout"] = "padded batches"
        planned = self.layout.get("planned_memory")
        predicted = f" ({planned['peak_gib']:.1f} predicted)" if planned else ""
        facts["memory"] = f"{self.peak_memory_gib:.1f} GiB at the peak{predicted}"
        if speeds := [log["tokens_per_second"] for log in self.log_history if "data_wait" in log]:
            planned_speed = self.layout.get("planned_tokens_per_second")
            predicted = f" ({planned_speed:,} predicted)" if planned_speed else ""
            facts["speed"] = f"{statistics.median(speeds):,.0f} tokens/s{predicted}"
        return facts


@dataclass(frozen=True)
class Adapter(Artifact):
    """An adapter's folder (weights, config, processor) and its record."""

    folder: Path
    record: AdapterRecord

    def in_run(self, mlflow_run_id: str | None) -> "Adapter":
        """The same adapter, marked with the MLflow run it was trained in."""
        record = self.record.model_copy(update={"mlflow_run_id": mlflow_run_id})
        return replace(self, record=record)

    @property
    def content_hash(self) -> str:
        """SHA-256 over weights and adapter config."""
        digest = hashlib.sha256()
        for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()


class BaseWeightsInAdapter(ValueError):
    """A folder that should hold just an adapter holds base weights or a pickle."""


def check_adapter_folder(folder: Path) -> None:
    """Refuse a folder that is no clean adapter: base weights, pickles, missing parts."""
    from safetensors import safe_open

    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no adapter: {name} is missing")
    for path in folder.rglob("*"):
        if path.suffix in PICKLE_SUFFIXES:
            raise BaseWeightsInAdapter(f"{path.name} may hold a pickle: an adapter has none")
        if path.suffix == ".safetensors" and path != folder / ADAPTER_WEIGHTS:
            raise BaseWeightsInAdapter(f"{path.name} holds weights that are not the adapter's")
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    allowed = ["lora_", *(config.get("modules_to_save") or [])]
    if config.get("bias", "none") != "none":
        allowed.append(".bias")  # trained along with the adapter
    with safe_open(folder / ADAPTER_WEIGHTS, "np") as weights:
        for key in weights.keys():  # noqa: SIM118 - safe_open is no mapping
            if not any(part in key for part in allowed):
                raise BaseWeightsInAdapter(f"{ADAPTER_WEIGHTS} holds the base weight {key}")


def save_adapter(model: "PeftModel", processor: Any, base: BaseModelRef, folder: Path) -> None:
    """Write a clean adapter folder that names its base by Hub id and commit.

    A base from a local folder is named by its content hash and, of an absolute path, by its last
    name: where it lies means nothing elsewhere.
    """
    model.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; ours is made on pushing
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = public_name(base.id)
    config["revision"] = base.revision
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT writes a set in no particular order
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    check_adapter_folder(folder)


def attach_adapter(model: "PreTrainedModel", adapter: Adapter) -> "PeftModel":
    """Put an adapter on a loaded base model, for inference."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter.folder, is_trainable=False)


@contextmanager
def without_adapter(model: "PeftModel") -> Iterator["PeftModel"]:
    """The same loaded model with its adapter switched off: the base model."""
    with model.disable_adapter():
        yield model


def without_wrapper(model: Any) -> "PreTrainedModel":
    """The model itself where PEFT stands around it; its adapter stays in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
