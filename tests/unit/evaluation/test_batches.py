"""How many rows are described together, and in what order."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from vlmtune.evaluation.batches import (
    MOST_ROWS,
    MOST_ROWS_ON_CPU,
    bytes_per_token,
    fixed_length,
    plan_batches,
    prompt_lengths,
    rows_that_fit,
    rows_to_read,
)

GIB = 1024**3


def model(device: str = "cuda", **text: Any) -> Any:
    """What is looked at of a model; without more, Qwen2-VL-7B's shapes."""
    shapes = {
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
    }
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**(shapes | text)))
    return SimpleNamespace(config=config, dtype=torch.bfloat16, device=torch.device(device))


def test_a_few_lengths_serve_all() -> None:
    """Each is as long as asked, and less than 64 tokens longer."""
    assert [fixed_length(tokens) for tokens in (1, 64, 65, 583)] == [64, 64, 128, 640]


def test_batches_hold_each_row_once_longest_first() -> None:
    """Shorter rows go together in larger numbers."""
    lengths = [10, 300, 20, 500, 30, 310]
    order = sorted(range(6), key=lambda row: -lengths[row])
    sizes = {512: 1, 320: 2, 64: 5}
    assert list(plan_batches(order, lengths, sizes.__getitem__)) == [[3], [5, 1], [4, 2, 0]]
    assert list(plan_batches([], [], sizes.__getitem__)) == []


def test_keys_and_values_of_a_7b() -> None:
    """28 layers of 4 heads of 128 numbers, twice, in 2 bytes each."""
    assert bytes_per_token(model())[0] == 57_344


@pytest.mark.parametrize(
    ("free", "rows"), [(60, 256), (30, 128), (1, 4), (0, 1), (10_000, MOST_ROWS)]
)
def test_rows_follow_the_free_memory(free: int, rows: int) -> None:
    """A power of two, at least one row, at most what makes a card no faster."""
    assert rows_that_fit(model(), tokens=528, new_tokens=256, free=free * GIB) == rows


def test_reading_in_pieces_leaves_room_for_more_rows() -> None:
    """Then only keys and values of all rows have to fit."""
    assert rows_that_fit(model(), 528, 256, in_pieces=True, free=100 * GIB) == MOST_ROWS
    assert rows_that_fit(model(), 528, 256, in_pieces=True, free=10 * GIB) == 128


@pytest.mark.parametrize(("free", "rows"), [(100, 32), (10, 24), (0, 1)])
def test_a_piece_is_bounded_by_its_tokens(free: int, rows: int) -> None:
    """And by the memory; one row is always read."""
    assert rows_to_read(model(), 512, free=free * GIB) == rows


def test_a_cpu_takes_fewer_rows() -> None:
    """It gains nothing from more."""
    assert rows_that_fit(model("cpu"), 50, 50, free=10_000 * GIB) == MOST_ROWS_ON_CPU
    assert rows_that_fit(model("cpu"), 50, 50) >= 1


def test_lengths_are_tokens_where_they_were_counted() -> None:
    """Else the characters of the prompt."""
    prompt = [{"role": "user", "content": "Describe."}]
    rows = Dataset.from_dict({"prompt": [prompt, prompt * 2], "tokens": [7, 5]})
    assert prompt_lengths(rows) == [7, 5]
    assert prompt_lengths(rows.remove_columns("tokens")) == [9, 18]
    unknown = Dataset.from_dict({"prompt": [prompt, prompt * 2], "tokens": [0, 5]})
    assert prompt_lengths(unknown) == [9, 18]
