"""How rows reach the model: in packs, or padded where packing is off or impossible."""

import logging
import math
import os
import shutil
import sys
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from vlmtune.encoding import CatalogCollator, encode_row
from vlmtune.errors import UserError
from vlmtune.models.attention import use_packed_attention
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.kernels import layers_compiled, layers_fused
from vlmtune.models.vision import PictureEncoder
from vlmtune.tracking.code_version import code_version
from vlmtune.training.checkpoints import is_whole, mark_complete
from vlmtune.training.feature_cache import FeatureCache, encoder_key
from vlmtune.training.memory_plan import (
    ModelShape,
    card_memory,
    matrix_ceiling,
    pick,
    plan_memory,
    shape_of,
    tokens_per_second,
)
from vlmtune.training.packable import why_not_packable
from vlmtune.training.packing import PackCollator, Positions, position_counter
from vlmtune.training.packs import PackSampler, fewest_packs, rows_that_fit
from vlmtune.training.plan import TrainingPlan
from vlmtune.training.preparing import RowEncoder, prepare_rows

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

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
        damaged: files in the cache that were read while training and not used.
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
    damaged: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        """Give the model its own vision tower back, and tell what the cache was like."""
        if self.pictures:
            self.pictures.remove()
        if self.damaged:
            logger.warning(
                "%d files in the cache of picture features were damaged: they were removed, and "
                "the features computed again. Look after the disk below vision_cache.folder.",
                self.damaged,
            )


@dataclass(frozen=True)
class Ingredients:
    """What a layout is made of.

    Attributes:
        model: without PEFT's wrapper, its adapter in place.
        train, held_out: rows with `prompt`, `completion` and `images`.
    """

    model: "PreTrainedModel"
    processor: "ProcessorMixin"
    collator: CatalogCollator
    base: BaseModelRef
    train: "Dataset"
    held_out: "Dataset"
    plan: TrainingPlan


def lay_out(given: Ingredients) -> Layout:
    """Packs if the config wants them and the model can take them, else padded batches.

    Raises:
        UserError: a row is larger than a pack may be.
    """
    plan = given.plan
    shape = _shape(given.model, plan)
    wanted = (plan.packing.max_tokens, plan.training.get("gradient_checkpointing", True))
    limit, checkpointing = pick(shape, card_memory(plan.device), *wanted)
    options = {"gradient_checkpointing": checkpointing, "dataloader_num_workers": _workers(plan)}
    before = given.model.config._attn_implementation
    try:
        pictures, positions = _require_packable(given)
    except Unpackable as reason:
        given.model.config._attn_implementation = before
        logger.info("Training in padded batches: %s", reason)
        return _padded(given, options)
    layout = _packed(given, pictures, positions, limit, options)
    if shape:
        layout.facts |= _predict(shape, layout)
    logger.info("Packed: %s", in_words(layout))
    return layout


class Unpackable(Exception):
    """Why rows are not packed."""


def _require_packable(given: Ingredients) -> tuple[PictureEncoder, Positions]:
    """Prepare the model for packs and try it on two rows."""
    if not given.plan.packing.packed:
        raise Unpackable("packing.packed is false")
    try:
        pictures = PictureEncoder(given.model)
    except TypeError as error:
        raise Unpackable(str(error)) from error
    logger.info("Attention: %s", use_packed_attention(given.model))
    positions = position_counter(pictures.inner)
    rows = [encode_row(given.collator, given.train[at % len(given.train)]) for at in range(2)]
    if reason := why_not_packable(given.model, pictures, positions, rows):
        pictures.remove()
        raise Unpackable(reason)
    return pictures, positions


def in_words(layout: Layout) -> str:
    """The layout of packs for the log."""
    planned = layout.facts.get("planned_memory")
    memory = ""
    if planned:
        minutes = layout.facts["planned_seconds"] / 60
        memory = f"; planned: {planned['peak_gib']:.1f} GiB at the peak, {minutes:.1f} minutes"
    return (
        "{packs_per_step} packs a step, of {rows_per_pack} rows and at most {largest_pack:,} "
        "tokens (limit {max_tokens:,}); {features}".format_map(layout.facts)
        + memory
    )


def _shape(model: "PreTrainedModel", plan: TrainingPlan) -> ModelShape | None:
    """What the memory plan needs to know of the model; None on a CPU, which is not planned."""
    if plan.device != "cuda":
        return None
    kernels = layers_compiled(plan.training, plan.fp8) or layers_fused(plan.training)
    return shape_of(model.config, plan.quantization, plan.lora, kernels, plan.fp8)


def _predict(shape: ModelShape, layout: Layout) -> dict[str, Any]:
    """Peak memory and speed to expect, kept beside what is measured."""
    planned = plan_memory(
        shape, layout.largest_pack, layout.checkpointing, cached=layout.features_cached
    )
    speed = tokens_per_second(shape, layout.checkpointing, matrix_ceiling())
    tokens = sum(layout.tokens or []) * layout.facts["epochs"]
    return {
        "planned_memory": planned.model_dump(),
        "planned_tokens_per_second": round(speed),
        "planned_seconds": round(tokens / speed),
    }


def _workers(plan: TrainingPlan) -> int:
    """Input workers: as configured, else one a core; training on a CPU leaves none to spare."""
    if "dataloader_num_workers" in plan.training:
        return plan.training["dataloader_num_workers"]
    return min(MOST_WORKERS, (os.cpu_count() or 1) - 1) if plan.device == "cuda" else 0


def _padded(given: Ingredients, options: dict[str, Any]) -> Layout:
    """Padded batches, rows of like length together where their lengths are known."""
    rows, grouped = given.train, {}
    if LENGTH in rows.column_names and any(rows.with_format(None)[LENGTH]):
        grouped = {"train_sampling_strategy": "group_by_length", "length_column_name": LENGTH}
    return Layout(
        rows,
        given.held_out,
        given.collator,
        {**options, **grouped},
        checkpointing=bool(options["gradient_checkpointing"]),
        facts={"packed": False, "grouped_by_length": bool(grouped)},
    )


def _packed(
    given: Ingredients,
    pictures: PictureEncoder,
    positions: Positions,
    limit: int,
    options: dict[str, Any],
) -> Layout:
    """Prepare all rows, and decide how many packs a step takes."""
    plan = given.plan
    cache = _feature_cache(given, pictures)
    encoder = RowEncoder(given.collator, positions, cache)
    sources = {TRAIN: given.train, HELD_OUT: given.held_out}
    workers = options["dataloader_num_workers"]
    train, held_out = (
        _prepare(rows, side, encoder, pictures, plan.folder / side, workers)
        for side, rows in sources.items()
    )
    if cache and cache.refused:
        logger.warning(
            "The features of %d pictures do not fit: they are computed again in every epoch. "
            "Raise vision_cache.max_gib above %.0f, if the disk has room.",
            *(cache.refused, plan.features_gib),
        )
    tokens = _lengths(train)
    sampler, epochs = _choose_packs(given, tokens, limit)
    largest = sampler.largest_pack(epochs)
    ranks = _ranks()
    packs = sampler.rows_per_step // sampler.rows_per_pack // ranks
    held_out_rows = plan.training.get("per_device_eval_batch_size", sampler.rows_per_pack)
    return Layout(
        train,
        held_out,
        PackCollator(given.collator, sources, cache, pictures.frozen and plan.device == "cpu"),
        {
            **options,
            "per_device_train_batch_size": sampler.rows_per_pack,
            "gradient_accumulation_steps": packs,
            "per_device_eval_batch_size": rows_that_fit(
                _lengths(held_out), max(largest, *tokens), held_out_rows
            ),
        },
        tokens=tokens,
        pictures=pictures,
        limit=limit,
        largest_pack=largest,
        checkpointing=bool(options["gradient_checkpointing"]),
        features_cached=cache is not None and not cache.refused,
        facts={
            "packed": True,
            "rows_per_pack": sampler.rows_per_pack,
            "packs_per_step": packs * ranks,
            "max_tokens": limit,
            "largest_pack": largest,
            "mean_tokens": round(sum(tokens) / len(tokens), 1),
            "epochs": epochs,
            "features": _features_in_words(cache, pictures),
        },
    )


def _choose_packs(given: Ingredients, tokens: list[int], limit: int) -> tuple[PackSampler, int]:
    """The packs of all epochs, as few a step as the limit allows; and how many epochs."""
    plan, ranks = given.plan, _ranks()
    rows_per_step = _rows_per_step(plan)
    epochs = _epochs(plan, len(tokens), rows_per_step * ranks)
    try:
        packs = fewest_packs(tokens, rows_per_step, limit, ranks, plan.seed, epochs)
    except ValueError as error:
        longest = given.train[tokens.index(max(tokens))]
        raise UserError(
            f"{error}: row {longest.get('row_id', tokens.index(max(tokens)))}.",
            "Set a larger packing.max_tokens, training.gradient_checkpointing=true, or a smaller "
            "model.max_pixels or data.max_tokens.",
        ) from error
    return PackSampler(tokens, rows_per_step // packs, packs * ranks, plan.seed), epochs


def _ranks() -> int:
    """Processes that train together, as torchrun tells them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _prepare(
    rows: "Dataset",
    side: str,
    encoder: RowEncoder,
    pictures: PictureEncoder,
    folder: "Path",
    workers: int,
) -> "Dataset":
    """The prepared rows; those of an interrupted training are used again, if they are whole."""
    from datasets import Dataset

    path = folder / "rows.arrow"
    if not is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        prepare_rows(rows, side, encoder, pictures, path, workers, sys.stderr.isatty())
        mark_complete(folder)
    return Dataset.from_file(str(path))


def _feature_cache(given: Ingredients, pictures: PictureEncoder) -> FeatureCache | None:
    """The cache for this model's features; None if training changes them, or it is switched off."""
    plan = given.plan
    if not pictures.frozen or plan.features is None:
        return None
    parts = encoder_parts(given.model, given.processor, given.base, plan)
    return FeatureCache(plan.features, encoder_key(parts), plan.features_gib)


def encoder_parts(
    model: "PreTrainedModel", processor: "ProcessorMixin", base: BaseModelRef, plan: TrainingPlan
) -> dict[str, Any]:
    """All that decides what the vision tower makes of a decoded picture."""
    import torch

    config = model.config
    parts = [config, *(getattr(config, name) for name in config.sub_configs)]
    quantization = getattr(config, "quantization_config", None)
    on_gpu, cpu = plan.device == "cuda", torch.cpu.get_capabilities()
    return {
        "model": base.revision,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "quantization": quantization and quantization.to_dict(),
        "dtype": model.dtype,
        "attention": [getattr(part, "_attn_implementation", None) for part in parts],
        "kernels": on_gpu and layers_fused(plan.training),
        "processor": processor.to_json_string(),
        # Each kind of GPU or CPU has kernels of its own, and with them other last bits.
        "device": torch.cuda.get_device_name() if on_gpu else sorted(cpu.items()),
        "code": code_version(__name__),  # also torch, transformers, bitsandbytes, Pillow ...
        "flash-attn": [each.version for each in metadata.distributions(name="flash-attn")],
    }


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


def _rows_per_step(plan: TrainingPlan) -> int:
    rows = plan.training.get("per_device_train_batch_size", 8)
    return rows * plan.training.get("gradient_accumulation_steps", 1)


def _epochs(plan: TrainingPlan, rows: int, rows_per_step: int) -> int:
    """Epochs that the training runs into."""
    steps = plan.training.get("max_steps", -1)
    if steps > 0:
        return math.ceil(steps / math.ceil(rows / rows_per_step))
    return math.ceil(plan.training.get("num_train_epochs", 3.0))
