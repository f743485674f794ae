"""The held-out rows stay held out, whatever other rows come and go."""

import random

import pytest

from vlmtune.catalog.split import is_held_out, split_rows
from vlmtune.config.data import HeldOutConfig
from vlmtune.errors import UserError

KEYS = [f"row {number}" for number in range(400)]


def held_out_keys(keys: list[str], fraction: float = 0.2) -> set[str]:
    """The keys on the held-out side."""
    _, held_out = split_rows(keys, HeldOutConfig(fraction=fraction))
    return {keys[row] for row in held_out}


def test_each_row_is_on_one_side_in_order() -> None:
    """The sides together are all rows, each in the catalog's order, about as many as asked for."""
    train, held_out = split_rows(KEYS, HeldOutConfig(fraction=0.2))
    assert sorted(train + held_out) == list(range(400))
    assert (train, held_out) == (sorted(train), sorted(held_out))
    assert 50 <= len(held_out) <= 110


def test_stable_when_rows_are_reordered_or_added() -> None:
    """A row keeps its side in a shuffled and in a larger catalog."""
    before = held_out_keys(KEYS)
    shuffled = random.Random(0).sample(KEYS, len(KEYS))
    assert held_out_keys(shuffled) == before
    larger = [f"new {number}" for number in range(100)] + KEYS
    assert held_out_keys(larger) & set(KEYS) == before


def test_larger_fraction_keeps_what_was_held_out() -> None:
    """Raising the fraction moves rows to one side only."""
    assert held_out_keys(KEYS, 0.1) < held_out_keys(KEYS, 0.3)


def test_groups_never_straddle() -> None:
    """Rows of equal key are on one side, all of them."""
    keys = [f"group {number % 40}" for number in range(400)]
    train, held_out = split_rows(keys, HeldOutConfig(fraction=0.3, by="group"))
    assert not {keys[row] for row in train} & {keys[row] for row in held_out}
    assert len(held_out) % 10 == 0


@pytest.mark.parametrize(
    ("held_out", "side", "verb"), [(True, "training", "Lower"), (False, "held-out", "Raise")]
)
def test_empty_side(held_out: bool, side: str, verb: str) -> None:
    """A side without rows is refused, saying which way to move the fraction."""
    key = next(key for key in KEYS if is_held_out(key, 0.5) == held_out)
    with pytest.raises(UserError) as caught:
        split_rows([key] * 5, HeldOutConfig(fraction=0.5, by="group"))
    assert f"the {side} split would be empty: 1 different values of 'group'" in str(caught.value)
    assert f"{verb} data.held_out.fraction" in str(caught.value)
