"""How rows reach the model: in packs, or padded where packing is off or impossible."""

import logging
import math
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmtune.encoding import CatalogCollator, encode_row
from vlmtune.errors import UserError
from vlmtune.models.attention import use_packed_attention
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.vision import PictureEncoder
from vlmtune.training.feature_cache import FeatureCache, encoder_key
from vlmtune.training.packable import why_not_packable
from vlmtune.training.packing import PackCollator, Positions, position_counter
from vlmtune.training.packs import PackSampler, fewest_packs, rows_that_fit
from vlmtune.training.preparing import RowEncoder, prepare_rows

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

    from vlmtune.training.trainer import TrainingPlan

logger = logging.getLogger(__name__)

TRAIN, HELD_OUT = "train", "held_out"
LENGTH = "tokens"  # column of the examples with the tokens of each row
MOST_WORKERS = 12


@dataclass
class Layout:
    """Rows, collator and options for the trainer.

    Attributes:
        train, held_out, collator: what the trainer reads.
        options: of SFTConfig, worked out for this layout.
        tokens: of each training row; None where batches are padded.
        pictures: stands before the vision tower while packs are trained.
        limit, largest_pack: tokens in a pack.
        features_cached: whether all picture features are on disk.
        checkpointing: whether activations are recomputed.
        facts: for the record and the report.
    """

    train: "Dataset"
    held_out: "Dataset"
    collator: Any
    options: dict[str, Any]
    tokens: list[int] | None = None
    pictures: PictureEncoder | None = None
    limit: int = 0
    largest_pack: int = 0
    checkpointing: bool = False
    features_cached: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        """Give the model its own vision tower back."""
        if self.pictures:
            self.pictures.remove()


def lay_out(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    collator: CatalogCollator,
    base: BaseModelRef,
    train: "Dataset",
    held_out: "Dataset",
    plan: "TrainingPlan",
) -> Layout:
    """Packs if the config wants them and the model can take them, else padded batches.

    Args:
        model: without PEFT's wrapper, its adapter in place.
    """
    limit, checkpointing = _memory(model, plan)
    options = {"gradient_checkpointing": checkpointing, "dataloader_num_workers": _workers(plan)}
    reason = "packing.packed is false"
    if plan.packing.packed:
        try:
            pictures = PictureEncoder(model)
        except TypeError as error:
            reason = str(error)
        else:
            before = model.config._attn_implementation
            attention = use_packed_attention(model)
            positions = position_counter(pictures.inner)
            rows = [encode_row(collator, train[place % len(train)]) for place in range(2)]
            reason = why_not_packable(model, pictures, positions, rows) or ""
            if not reason:
                logger.info("Attention: %s", attention)
                return _packed(
                    model,
                    processor,
                    collator,
                    base,
                    train,
                    held_out,
                    plan,
                    pictures,
                    positions,
                    limit,
                    options,
                )
            pictures.remove()
            model.config._attn_implementation = before
    logger.info("Training in padded batches: %s", reason)
    return _padded(train, held_out, collator, options)


def _memory(model: "PreTrainedModel", plan: "TrainingPlan") -> tuple[int, Any]:
    """Tokens in a pack and checkpointing, worked out for this card where they are `auto`."""
    from vlmtune.training.memory_plan import card_memory, pick, shape_of

    wanted = (plan.packing.max_tokens, plan.training.get("gradient_checkpointing", True))
    if "auto" not in wanted:
        return wanted
    shape = None
    if plan.device == "cuda":
        from vlmtune.training.trainer import fused_kernels

        shape = shape_of(model.config, plan.quantization, plan.lora, fused_kernels(plan))
    return pick(shape, card_memory(plan.device), *wanted)


def _workers(plan: "TrainingPlan") -> int:
    """Input workers: as configured, else one a core; training on a CPU leaves none to spare."""
    if "dataloader_num_workers" in plan.training:
        return plan.training["dataloader_num_workers"]
    return min(MOST_WORKERS, (os.cpu_count() or 1) - 1) if plan.device == "cuda" else 0


def _padded(
    train: "Dataset", held_out: "Dataset", collator: CatalogCollator, options: dict[str, Any]
) -> Layout:
    """Padded batches, rows of like length together where their lengths are known."""
    grouped = {}
    if LENGTH in train.column_names and any(train.with_format(None)[LENGTH]):
        grouped = {"train_sampling_strategy": "group_by_length", "length_column_name": LENGTH}
    return Layout(
        train,
        held_out,
        collator,
        {**options, **grouped},
        checkpointing=bool(options["gradient_checkpointing"]),
        facts={"packed": False, "grouped_by_length": bool(grouped)},
    )


def _packed(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    collator: CatalogCollator,
    base: BaseModelRef,
    train: "Dataset",
    held_out: "Dataset",
    plan: "TrainingPlan",
    pictures: PictureEncoder,
    positions: Positions,
    limit: int,
    options: dict[str, Any],
) -> Layout:
    """Prepare all rows, and decide how many packs a step takes."""
    cache = _feature_cache(model, processor, base, plan, pictures)
    encoder = RowEncoder(collator, positions, cache)
    sources = {TRAIN: train, HELD_OUT: held_out}
    workers = options["dataloader_num_workers"]
    prepared = {
        side: _prepare(rows, side, encoder, pictures, plan.folder / f"{side}.arrow", workers)
        for side, rows in sources.items()
    }
    if cache and cache.refused:
        logger.warning(
            "The features of %d pictures do not fit: they are computed again in every epoch. "
            "Raise vision_cache.max_gib above %.0f, if the disk has room.",
            *(cache.refused, plan.features_gib),
        )
    tokens = _lengths(prepared[TRAIN])
    rows_per_step = _rows_per_step(plan)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    epochs = _epochs(plan, len(tokens), rows_per_step * ranks)
    try:
        packs = fewest_packs(tokens, rows_per_step, limit, ranks, plan.seed, epochs)
    except ValueError as error:
        raise UserError(
            f"{error}: row {train[tokens.index(max(tokens))].get('row_id', '')}.",
            "Set a larger packing.max_tokens, training.gradient_checkpointing=true, or a smaller "
            "model.max_pixels or data.max_tokens.",
        ) from error
    rows_per_pack = rows_per_step // packs
    sampler = PackSampler(tokens, rows_per_pack, packs * ranks, plan.seed)
    largest = sampler.largest_pack(epochs)
    held_out_rows = plan.training.get("per_device_eval_batch_size", rows_per_pack)
    logger.info(
        "Packed: %d rows a step in %d pack%s of %d, at most %d tokens (limit %d); %s",
        *(rows_per_step * ranks, packs * ranks, "s" * (packs * ranks > 1), rows_per_pack),
        *(largest, limit, _features_in_words(cache, pictures)),
    )
    return Layout(
        prepared[TRAIN],
        prepared[HELD_OUT],
        PackCollator(collator, sources, cache),
        {
            **options,
            "per_device_train_batch_size": rows_per_pack,
            "gradient_accumulation_steps": packs,
            "per_device_eval_batch_size": rows_that_fit(
                _lengths(prepared[HELD_OUT]), max(largest, max(tokens)), held_out_rows
            ),
        },
        tokens=tokens,
        pictures=pictures,
        limit=limit,
        largest_pack=largest,
        features_cached=cache is not None and not cache.refused,
        checkpointing=bool(options["gradient_checkpointing"]),
        facts={
            "packed": True,
            "rows_per_pack": rows_per_pack,
            "packs_per_step": packs * ranks,
            "max_tokens": limit,
            "largest_pack": largest,
            "mean_tokens": round(sum(tokens) / len(tokens), 1),
            "features": _features_in_words(cache, pictures),
        },
    )


def _prepare(
    rows: "Dataset",
    side: str,
    encoder: RowEncoder,
    pictures: PictureEncoder,
    path: "Path",
    workers: int,
) -> "Dataset":
    """The prepared rows; those of an interrupted training are used again."""
    from datasets import Dataset

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".tmp")
        prepare_rows(rows, side, encoder, pictures, half, workers, sys.stderr.isatty())
        half.rename(path)
    return Dataset.from_file(str(path))


def _feature_cache(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    base: BaseModelRef,
    plan: "TrainingPlan",
    pictures: PictureEncoder,
) -> FeatureCache | None:
    """The cache for this model's features; None if training changes them, or it is switched off."""
    if not pictures.frozen or plan.features is None:
        return None
    import torch
    import transformers

    parts = {
        "model": base.revision,
        "processor": processor.image_processor.to_json_string(),
        "dtype": model.dtype,
        "device": plan.device,
        "versions": (torch.__version__, transformers.__version__),
    }
    return FeatureCache(plan.features, encoder_key(parts), plan.features_gib)


def _features_in_words(cache: FeatureCache | None, pictures: PictureEncoder) -> str:
    if cache:
        return f"picture features from {cache.folder}"
    if pictures.frozen:
        return "picture features computed in every epoch (vision_cache.enabled is false)"
    return "picture features computed in every epoch, since the vision tower is trained"


def _lengths(rows: "Dataset") -> list[int]:
    """Tokens of each prepared row, without reading them."""
    import pyarrow.compute

    return pyarrow.compute.list_value_length(rows.data.column("input_ids")).to_pylist()


def _rows_per_step(plan: "TrainingPlan") -> int:
    rows = plan.training.get("per_device_train_batch_size", 8)
    return rows * plan.training.get("gradient_accumulation_steps", 1)


def _epochs(plan: "TrainingPlan", rows: int, rows_per_step: int) -> int:
    """Epochs that the training runs into."""
    steps = plan.training.get("max_steps", -1)
    if steps > 0:
        return math.ceil(steps / math.ceil(rows / rows_per_step))
    return math.ceil(plan.training.get("num_train_epochs", 3.0))
