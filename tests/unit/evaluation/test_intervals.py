"""Intervals over groups: how sure a mean or a difference is."""

import math
import random
from collections.abc import Sequence

import pytest

from benchmarks.simulate_gate import NOMINAL, rates
from vlmtune.evaluation.intervals import Interval, interval, paired


def alone(values: Sequence[float]) -> Interval | None:
    """The interval of rows that are a group each."""
    return interval(values, [str(row) for row in range(len(values))])


def test_it_narrows_with_the_rows() -> None:
    """And lies around the mean, about two standard errors to each side."""
    generator = random.Random(0)
    values = [generator.gauss(0.5, 0.1) for _ in range(400)]
    few, many = alone(values[:25]), alone(values)
    assert few and many and few.high and few.low and many.high and many.low
    assert many.low < many.mean < many.high and many.rows == 400
    assert many.high - many.low == pytest.approx(4 * 0.1 / 20, rel=0.15)
    assert few.high - few.low > 3 * (many.high - many.low)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    """In 19 of 20 cases, more or less."""
    generator = random.Random(1)
    hits = 0
    for _ in range(200):
        found = alone([generator.expovariate(1.0) for _ in range(60)])
        assert found and found.low is not None and found.high is not None
        hits += found.low <= 1.0 <= found.high
    assert 179 <= hits <= 199  # 190 and 3.6 standard deviations


def test_pairs_are_kept_together() -> None:
    """Rows that differ much, by models that differ little: the small gain is sure."""
    generator = random.Random(2)
    theirs = [generator.random() for _ in range(100)]
    ours = [value + 0.01 + generator.gauss(0, 0.005) for value in theirs]
    found = paired(ours, theirs, [str(row) for row in range(100)])
    assert found and found.low is not None and found.low > 0
    single = alone(ours)
    assert single and single.low is not None and single.high is not None
    assert found.high - found.low < (single.high - single.low) / 10  # type: ignore[operator]


def test_the_same_rows_give_the_same_interval() -> None:
    """In every run."""
    values = [0.1, 0.9, 0.4, 0.3]
    assert alone(values) == alone(list(values))


def test_no_difference_is_sure_to_be_none() -> None:
    """A tie is not sure to be better."""
    found = paired([0.5, 0.7], [0.5, 0.7], ["a", "b"])
    assert found == Interval(mean=0, low=0, high=0, groups=2, rows=2)


def test_too_little_to_tell() -> None:
    """One group has no interval; none, or a value that is no number, has no mean either."""
    assert alone([0.3]) == Interval(mean=0.3, low=None, high=None, groups=1, rows=1)
    copies = interval([0.3] * 20, ["a"] * 20)
    assert copies and (copies.low, copies.high, copies.groups, copies.rows) == (None, None, 1, 20)
    assert alone([]) is None
    assert alone([0.1, math.nan]) is None
    assert alone([0.1, math.inf]) is None


def test_copies_of_a_row_make_nothing_surer() -> None:
    """Ten rows, or each of them 20 times."""
    values = [0.1, 0.5, 0.3, -0.2, 0.4, 0.0, 0.2, 0.6, 0.1, 0.2]
    once = alone(values)
    often = interval(values * 20, [str(row) for row in range(10)] * 20)
    assert once and often and often.rows == 200
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_it_leans_against_a_long_tail() -> None:
    """Rare large losses leave room for a worse mean; mirrored, the interval is mirrored."""
    losses = [-1.0, *[0.1] * 29]
    found, mirrored = alone(losses), alone([-value for value in losses])
    assert found and mirrored and found.low is not None and found.high is not None
    assert found.mean - found.low > 1.5 * (found.high - found.mean)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(
    ("shape", "size", "correlation", "least", "most"),
    [
        ("normal", "4", 0.9, 0.015, 0.035),
        ("normal", "1 to 8", 0.5, 0.015, 0.035),
        ("skewness -1", "4", 0.9, 0.0, 0.05),
        ("skewness +1", "1 to 8", 0.5, 0.0, 0.05),
    ],
)
def test_no_gain_is_rarely_significant(
    shape: str, size: str, correlation: float, least: float, most: float
) -> None:
    """With 30 groups, to 4 standard errors of the trials' own; rows by themselves fail this."""
    trials = 5_000
    cell = (shape, 30, size, correlation)
    found, rows = rates(cell, ["chosen", "t, rows"], trials, seed=0)
    margin = 4 * math.sqrt(0.025 * 0.975 / trials)
    assert max(least, NOMINAL - margin) <= found <= min(most, NOMINAL + margin)
    assert rows > most


def test_a_gain_is_seen() -> None:
    """Of half the spread of the rows, in 30 groups of two like the demo's 36."""
    (power,) = rates(("normal", 30, "2", 0.9), ["chosen"], 1_000, seed=0, gain=0.05)
    assert power > 0.6


def test_lists_of_different_lengths_are_refused() -> None:
    """They could not be pairs."""
    with pytest.raises(ValueError, match="zip"):
        paired([0.1], [0.1, 0.2], ["a", "b"])
