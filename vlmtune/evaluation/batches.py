"""Which rows are described together: rows of like length, as many as the memory holds."""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import psutil
import torch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

AUTO = "auto"
MOST_ROWS, MOST_ROWS_ON_CPU = 512, 64  # more make no card, and no CPU, faster
MEMORY_USED = 0.6  # share of the free memory that the estimate fills
SHORTEST = 64  # tokens


def prompt_lengths(rows: "Dataset") -> list[int]:
    """Tokens of each row as they were counted when the catalog was read, or else the characters
    of its prompt."""
    plain = rows.with_format(None)  # the pictures need not be decoded for that
    tokens = plain["tokens"] if "tokens" in plain.column_names else [0]
    if all(tokens):
        return list(tokens)
    return [sum(len(message["content"]) for message in prompt) for prompt in plain["prompt"]]


def fixed_length(tokens: int) -> int:
    """The next of a few lengths (64, 96, 128, 192, 256 ...): what is compiled for one of them
    serves all shorter rows, at most a third of it in vain."""
    length = SHORTEST
    while length < tokens:
        # From a power of two to one and a half of it, and on to the next power of two.
        length = length * 3 // 2 if length & (length - 1) == 0 else length * 4 // 3
    return length


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


def rows_that_fit(model: "PreTrainedModel", tokens: int, free: int | None = None) -> int:
    """An estimate of how many rows can be described at a time, a power of two.

    Args:
        tokens: of a row, prompt and answer together.
        free: bytes; None looks.
    """
    free = free_memory(model.device) if free is None else free
    most = MOST_ROWS if model.device.type == "cuda" else MOST_ROWS_ON_CPU
    fitting = int(MEMORY_USED * free / (tokens * bytes_per_token(model)))
    return 1 << (min(max(fitting, 1), most).bit_length() - 1)


def bytes_per_token(model: "PreTrainedModel") -> int:
    """Memory that a token takes: its keys and values in all layers, and what one layer holds of
    it while the prompt is read."""
    text: Any = model.config.get_text_config()
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = (
        2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", heads) or heads) * head
    )
    passing = 8 * text.hidden_size + 3 * getattr(text, "intermediate_size", 4 * text.hidden_size)
    return (kept + passing) * torch.finfo(model.dtype).bits // 8


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device, with what torch has reserved there and not used."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + idle)


def input_workers(device: torch.device) -> int:
    """Threads that decode and encode the batches to come."""
    return max(1, min(4, (os.cpu_count() or 1) // 2)) if device.type == "cuda" else 1
