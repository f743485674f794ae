"""Descriptions for many rows: batched, longest prompts first, greedy unless told otherwise."""

import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import GenerationConfig

from vlmtune.encoding import encode_prompts

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

logger = logging.getLogger(__name__)


def describe(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    rows: "Dataset",
    options: dict[str, Any],
    batch_size: int,
    label: str,
) -> tuple[list[str], float]:
    """Write a description for each row.

    Args:
        rows: with the columns `prompt` and `images`.
        options: of transformers.GenerationConfig.
        label: shown beside the progress bar.

    Returns:
        The descriptions in the order of the rows, and the seconds it took.
    """
    start = time.monotonic()
    model.eval()
    # Rows of like length go together, so that little is padded; longest first, so that a batch
    # which does not fit into memory fails at once.
    lengths = _prompt_lengths(rows)
    order = sorted(range(len(rows)), key=lambda row: -lengths[row])
    texts: dict[int, str] = {}
    for batch in track(
        list(_batches(order, batch_size)),
        description=f"Describing with the {label} model",
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    ):
        for row, text in zip(
            batch, describe_batch(model, processor, rows[batch], options), strict=True
        ):
            texts[row] = text
    seconds = time.monotonic() - start
    logger.info("%s model: %d rows, %.1f rows/s", label, len(rows), len(rows) / seconds)
    return [texts[row] for row in range(len(rows))], round(seconds, 2)


def _prompt_lengths(rows: "Dataset") -> list[int]:
    """Characters of each prompt."""
    # Without the transform: the pictures need not be decoded to count characters.
    prompts = rows.with_format(None)["prompt"]
    return [sum(len(message["content"]) for message in prompt) for prompt in prompts]


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def describe_batch(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    batch: dict[str, list[Any]],
    options: dict[str, Any],
) -> list[str]:
    """Write a description for each row of a batch with the columns `prompt` and `images`."""
    inputs = encode_prompts(processor, batch["prompt"], batch["images"]).to(model.device)
    config = GenerationConfig(**{**model.generation_config.to_diff_dict(), **options})
    tokens = model.generate(**inputs, generation_config=config)
    answers = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]
