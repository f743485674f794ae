"""Merging an adapter into its base, in bf16 and never into 4 bits, and proving that it worked."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtune.config.model import ModelConfig
from vlmtune.config.publishing import MAX_RELATIVE_DIVERGENCE
from vlmtune.models.adapter import Adapter, attach_adapter, without_adapter
from vlmtune.models.base_model import require_unchanged
from vlmtune.models.generation_config import check_generation, write_generation
from vlmtune.models.merge_record import MergeCheck, MergeRecord, MergeResult
from vlmtune.models.processor import load_processor
from vlmtune.models.quantized import load_model
from vlmtune.revision import hash_files

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import ProcessorMixin

    from vlmtune.models.merge_checks import Distance

# From a GPU, a shard is copied to the host to be written; safetensors before 0.6 copies it anyway.
SHARD_SIZE = "2GB"
# A processor's picture limits as they are saved, and not set again from this run's config.
AS_SAVED = {"min_pixels": None, "max_pixels": None}


def merge(
    adapter: Adapter,
    config: ModelConfig,
    rows: "Dataset",
    folder: Path,
    skipped: str = "",
    max_relative_divergence: float = MAX_RELATIVE_DIVERGENCE,
    generation: dict[str, Any] | None = None,
) -> MergeResult:
    """Merge the adapter into a freshly loaded bf16 base at the recorded revision, and check it.

    Merging into the 4-bit weights would round the adapter away. There is never more than one
    model in memory: it is merged in place, written, and gone before it is read back.

    Args:
        rows: held-out rows to check with: `prompt`, `completion` and decoded `images`.
        folder: where the merged model is written; made here, and removed again if it fails.
        skipped: why it is not merged; empty to merge it.
        max_relative_divergence: how far base and adapter may be from the merged model, as a share
            of how far they are from the base.
        generation: options of transformers.GenerationConfig that the gate asks with; the merged
            model's generation_config.json says them.

    Raises:
        FileExistsError: there is something in the folder.
        UserError: the base model is no longer the one that was trained on.
    """
    if skipped:
        return MergeResult(_record(adapter, "skipped", reason=skipped))
    require_unchanged(adapter.record.base)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    try:
        record = _merge_and_check(
            adapter, config, rows, folder, max_relative_divergence, generation or {}
        )
    except BaseException:
        _remove(folder)  # nothing half-written is taken for whole
        raise
    if record.status == "failed":
        _remove(folder)
        return MergeResult(record)
    return MergeResult(record, folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _merge_and_check(
    adapter: Adapter,
    config: ModelConfig,
    rows: "Dataset",
    folder: Path,
    max_relative_divergence: float,
    generation: dict[str, Any],
) -> MergeRecord:
    from vlmtune.models.merge_checks import (
        answer_logits,
        check_adapter_works,
        check_divergence,
        check_inputs,
        measure_distance,
        pick_rows,
    )
    from vlmtune.models.merged_weights import check_stored_weights, digest_weights

    rows = pick_rows(rows)
    processor = load_processor(str(adapter.folder), None, config)
    tuned, change, noise = _tuned_outputs(adapter, config, processor, rows)
    checks = [check_adapter_works(change, noise)]
    if checks[0].met:
        written, weights = _write_merged(adapter, config, processor, folder, generation)
        checks.append(weights)
    if not all(check.met for check in checks):
        return _judged(adapter, checks, files={})
    # Before they are read back: files that change in between fail a check below, later ones differ
    # from these hashes.
    files = hash_files(folder)
    # As whoever serves it will load it.
    stored = load_processor(str(folder), None, config.model_copy(update=AS_SAVED))
    checks += check_inputs(processor, stored, rows)
    merged = load_model(str(folder), None, config, quantization={})
    checks.append(check_generation(merged, generation))
    checks.append(check_stored_weights(written, digest_weights(merged)))
    divergence = measure_distance(tuned, answer_logits(merged, processor, rows))
    checks.append(check_divergence(divergence, change, noise, max_relative_divergence))
    return _judged(adapter, checks, files)


def _tuned_outputs(
    adapter: Adapter, config: ModelConfig, processor: "ProcessorMixin", rows: "Dataset"
) -> "tuple[list[torch.Tensor], Distance, Distance]":
    """What base and adapter give for each row, and how far two others lie from it: the base alone,
    and base and adapter with rounding noise in the weights, which are of no more use after that.

    Nothing holds the model when this is left.
    """
    from vlmtune.models.merge_checks import answer_logits, measure_distance
    from vlmtune.models.merged_weights import add_rounding_noise

    model = _load_tuned(adapter, config)
    tuned = list(answer_logits(model, processor, rows))
    with without_adapter(model) as bare:
        change = measure_distance(tuned, answer_logits(bare, processor, rows))
    add_rounding_noise(model)
    return tuned, change, measure_distance(tuned, answer_logits(model, processor, rows))


def _write_merged(
    adapter: Adapter,
    config: ModelConfig,
    processor: "ProcessorMixin",
    folder: Path,
    generation: dict[str, Any],
) -> tuple[dict[str, str], MergeCheck]:
    """Merge and write the model, unless a weight is not what it should be.

    Nothing holds the model when this is left.

    Returns:
        Digests of the weights, and what was found of them.
    """
    from vlmtune.models.merged_weights import digest_weights, merge_layers

    merged, check = merge_layers(_load_tuned(adapter, config), adapter.folder)
    if not check.met:
        return {}, check
    merged.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    write_generation(merged, generation, folder)
    processor.save_pretrained(folder)
    return digest_weights(merged), check


def _load_tuned(adapter: Adapter, config: ModelConfig) -> "PeftModel":
    base = adapter.record.base
    return attach_adapter(load_model(base.id, base.commit, config, quantization={}), adapter)


def _judged(adapter: Adapter, checks: list[MergeCheck], files: dict[str, str]) -> MergeRecord:
    unmet = [
        f"{check.name}: wanted {check.wanted}, found {check.found}"
        for check in checks
        if not check.met
    ]
    if unmet:
        return _record(adapter, "failed", reason="; ".join(unmet), checks=checks)
    return _record(adapter, "merged", checks=checks, files=files)


def _record(adapter: Adapter, status: str, **facts: object) -> MergeRecord:
    return MergeRecord.model_validate(
        {
            "status": status,
            "base": adapter.record.base,
            "adapter_hash": adapter.content_hash,
            **facts,
        }
    )
