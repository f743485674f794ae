"""Which rows are described together: rows of like length, as many as the memory holds."""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from vlmtune.models.memory import free_memory

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

AUTO = "auto"
# More make no CPU faster; an H200 wrote 4 % faster with 1,024 than with 512.
MOST_ROWS, MOST_ROWS_ON_CPU = 1_024, 64
MEMORY_USED = 0.6  # share of the free memory that the estimate fills
# Prompts are read in packs of so many tokens, in this share of the free memory: enough to keep a
# card busy.
MOST_READ, MEMORY_FOR_READING = 16_384, 0.2
MOST_AHEAD = 32  # packs that wait to be read: a few GB, however large the pictures
LENGTH_STEP = 64  # tokens


def prompt_lengths(rows: "Dataset") -> list[int]:
    """Tokens of each row as they were counted when the catalog was read, or else the characters
    of its prompt."""
    plain = rows.with_format(None)  # the pictures need not be decoded for that
    tokens = plain["tokens"] if "tokens" in plain.column_names else [0]
    if all(tokens):
        return list(tokens)
    return [sum(len(message["content"]) for message in prompt) for prompt in plain["prompt"]]


def fixed_length(tokens: int) -> int:
    """The next multiple of 64: what is captured for one of these lengths serves all rows that are
    a little shorter, and few tokens of the cache are read in vain."""
    return -(-tokens // LENGTH_STEP) * LENGTH_STEP


def plan_batches(
    order: list[int], lengths: list[int], rows_at: Callable[[int], int]
) -> Iterator[list[int]]:
    """Cut rows into batches.

    Args:
        order: the rows, longest first.
        lengths: of each row.
        rows_at: how many rows of a length, one of the fixed ones, go together.
    """
    at = 0
    while at < len(order):
        size = rows_at(fixed_length(lengths[order[at]]))
        yield order[at : at + size]
        at += size


def rows_that_fit(
    model: "PreTrainedModel",
    tokens: int,
    new_tokens: int,
    in_pieces: bool = False,
    free: int | None = None,
) -> int:
    """An estimate of how many rows can be described at a time, a power of two.

    Args:
        tokens: of a row's prompt.
        new_tokens: of its answer.
        in_pieces: whether few of the prompts are read at a time.
        free: bytes; None looks.
    """
    free = free_memory(model.device) if free is None else free
    most = MOST_ROWS if model.device.type == "cuda" else MOST_ROWS_ON_CPU
    kept, passing = bytes_per_token(model)
    row = (tokens + new_tokens) * kept + (0 if in_pieces else tokens * passing)
    return 1 << (min(max(int(MEMORY_USED * free / row), 1), most).bit_length() - 1)


def rows_to_read(model: "PreTrainedModel", tokens: int, free: int | None = None) -> int:
    """How many prompts of so many tokens are read together, if a batch is read in pieces."""
    free = free_memory(model.device) if free is None else free
    _, passing = bytes_per_token(model)
    return max(1, min(MOST_READ, int(MEMORY_FOR_READING * free / passing)) // tokens)


def bytes_per_token(model: "PreTrainedModel") -> tuple[int, int]:
    """Memory that a token takes: its keys and values in all layers, and what one layer holds of
    it besides while the prompt is read."""
    text: Any = model.config.get_text_config()
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    shared = getattr(text, "num_key_value_heads", heads) or heads
    kept = 2 * text.num_hidden_layers * shared * head
    passing = 8 * text.hidden_size + 3 * getattr(text, "intermediate_size", 4 * text.hidden_size)
    size = torch.finfo(model.dtype).bits // 8
    return kept * size, passing * size


def input_workers(device: torch.device) -> int:
    """Threads that decode and encode the batches to come."""
    return max(1, min(4, (os.cpu_count() or 1) // 2)) if device.type == "cuda" else 1
