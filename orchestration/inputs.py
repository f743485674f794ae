"""What the config's names stand for today, and whether this machine can do the job."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestration.trained_model import TrainedModel
from vlmtune.catalog.source import catalog_version
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError
from vlmtune.models.base_model import BaseModelRef, resolve_base_model
from vlmtune.revision import folder_size, is_local

GIB = 1024**3
QUANTIZED_SHARE = 0.4  # 4-bit weights, and the embeddings and vision tower left in bf16
ROOM_TO_WORK = 0.2 * GIB  # checkpoints, reports, logs


@dataclass(frozen=True)
class ResolvedInputs:
    """The exact catalog and base model of a run."""

    catalog_version: str
    base: BaseModelRef


def resolve_inputs(config: FinetuneConfig, trained: TrainedModel | None = None) -> ResolvedInputs:
    """Pin catalog and base model, before anything heavy is imported.

    Args:
        trained: a model whose base is known already.

    Raises:
        UserError: one of them is not there, or lacks a part; or there are no descriptions.
    """
    if not (trained or config.data.described):
        raise UserError(
            "data.described is false: rows without a description are nothing to learn from.",
            "Leave it out and map the column of descriptions in data.columns; or describe the "
            "rows: --pipeline describe",
        )
    base = trained.base if trained else resolve_base_model(config.model)
    return ResolvedInputs(catalog_version=catalog_version(config.data), base=base)


def check_device(config: FinetuneConfig) -> None:
    """Raise UserError where the config insists on a GPU that is not there."""
    if config.model.device == "cuda":
        from vlmtune.models.quantized import require_device

        require_device(config.model.device)


def disk_needed(config: FinetuneConfig, models: bool = True) -> int:
    """Bytes of the artifacts to come: catalog and, where they are made, 4-bit and merged model.
    What lies on the Hub is unknown here and left out."""
    needed = ROOM_TO_WORK
    for source in config.data.all_sources:
        if is_local(source.source):
            needed += 2 * folder_size(Path(source.source).expanduser())  # once while it is read
    if models and is_local(config.model.id):
        model_size = folder_size(Path(config.model.id).expanduser())
        needed += model_size * (QUANTIZED_SHARE + (1.0 if config.merge.enabled else 0.0))
    return int(needed)


def check_disk(folder: Path, needed: int) -> None:
    """Refuse a run whose artifacts will not fit, before hours are spent on it.

    Raises:
        UserError: less than `needed` bytes are free.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"the artifacts need about {needed / GIB:.1f} GiB, but only {free / GIB:.1f} GiB are "
            f"free at {folder}.",
            "Free some space, or use a stack with another artifact store: --stack.",
        )
