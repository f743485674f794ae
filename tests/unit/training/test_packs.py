"""Which rows share a pack."""

import random

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from vlmtune.training.packs import PackSampler, balance, fewest_packs, rows_that_fit


def lengths(count: int, seed: int = 0) -> list[int]:
    """Tokens of some rows, of many sizes."""
    generator = random.Random(seed)
    return [generator.randint(100, 1500) for _ in range(count)]


def test_packs_are_balanced() -> None:
    """Equally many rows, and tokens that differ by less than a row."""
    tokens = lengths(32)
    packs = balance(tokens, 4)
    sums = [sum(tokens[row] for row in pack) for pack in packs]
    assert [len(pack) for pack in packs] == [8] * 4
    assert sorted(row for pack in packs for row in pack) == list(range(32))
    assert max(sums) - min(sums) < min(tokens) < sum(tokens) / 32


def test_rows_cut_as_they_lie_would_not_be() -> None:
    """The figure above is no accident."""
    tokens = lengths(32)
    sums = [sum(tokens[at : at + 8]) for at in range(0, 32, 8)]
    assert max(sums) - min(sums) > 2 * min(tokens)


@pytest.mark.parametrize("rows", [32, 61, 7])
def test_an_epoch_has_each_row_once(rows: int) -> None:
    """Whatever is left over at the end."""
    sampler = PackSampler(lengths(rows), 4, 2, seed=3)
    assert sorted(sampler) == list(range(rows)) and len(sampler) == rows


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    """So a resumed run goes on with the same packs."""
    tokens = lengths(64)
    first, again, other = (PackSampler(tokens, 4, 2, seed) for seed in (1, 1, 2))
    assert list(first) == list(again) != list(other)
    first.set_epoch(1)
    assert list(first) != list(again)
    again.set_epoch(1)
    assert list(first) == list(again)


def test_batches_are_the_packs() -> None:
    """The DataLoader cuts the order where the packs end, the rest of the epoch included."""
    sampler = PackSampler(lengths(45), 4, 2, seed=0)
    assert list(BatchSampler(sampler, 4, drop_last=False)) == list(sampler.packs(0))


def test_ranks_share_a_step() -> None:
    """Two ranks get different rows of the same step, and nearly as many tokens."""
    tokens = lengths(64)
    sampler = PackSampler(tokens, 4, 4, seed=0)  # two packs a step on each of two ranks
    ranks = [
        list(BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), 2, rank))
        for rank in range(2)
    ]
    for step in range(4):
        packs = [pack for rank in ranks for pack in rank[2 * step : 2 * step + 2]]
        assert len({row for pack in packs for row in pack}) == 16
        sums = [sum(tokens[row] for row in pack) for pack in packs]
        assert max(sums) < 1.1 * min(sums)


def test_no_pack_is_larger_than_the_limit() -> None:
    """In any epoch; and one pack less would not do."""
    tokens = lengths(96)
    packs = fewest_packs(tokens, 32, 8_000, ranks=1, seed=0, epochs=3)
    assert PackSampler(tokens, 32 // packs, packs, 0).largest_pack(3) <= 8_000
    assert PackSampler(tokens, 64 // packs, packs // 2, 0).largest_pack(3) > 8_000


def test_a_row_larger_than_a_pack() -> None:
    """Says how large it is."""
    with pytest.raises(ValueError, match="9000 tokens"):
        fewest_packs([10, 9000], 2, 8_000, ranks=1, seed=0, epochs=1)


def test_rows_that_fit() -> None:
    """As many as are wanted, or as the limit allows, and at least one."""
    assert rows_that_fit([10] * 9, 100, at_most=4) == 4
    assert rows_that_fit([10, 10, 50, 50], 60, at_most=4) == 1
    assert rows_that_fit([10, 10, 50, 10], 60, at_most=4) == 2
    assert rows_that_fit([70], 60, at_most=4) == 1
