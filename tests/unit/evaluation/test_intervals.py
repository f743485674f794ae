"""Bootstrap intervals: how sure a mean or a difference is."""

import math
import random

import pytest

from vlmtune.evaluation.intervals import Interval, interval, paired


def test_it_narrows_with_the_rows() -> None:
    """And lies around the mean, about two standard errors to each side."""
    generator = random.Random(0)
    values = [generator.gauss(0.5, 0.1) for _ in range(400)]
    few, many = interval(values[:25]), interval(values)
    assert few and many and few.high and few.low and many.high and many.low
    assert many.low < many.mean < many.high and many.rows == 400
    assert many.high - many.low == pytest.approx(4 * 0.1 / 20, rel=0.15)
    assert few.high - few.low > 3 * (many.high - many.low)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    """In 19 of 20 cases, more or less."""
    generator = random.Random(1)
    hits = 0
    for _ in range(200):
        found = interval([generator.expovariate(1.0) for _ in range(60)])
        assert found and found.low is not None and found.high is not None
        hits += found.low <= 1.0 <= found.high
    assert 175 <= hits <= 199


def test_pairs_are_kept_together() -> None:
    """Rows that differ much, by models that differ little: the small gain is sure."""
    generator = random.Random(2)
    theirs = [generator.random() for _ in range(100)]
    ours = [value + 0.01 + generator.gauss(0, 0.005) for value in theirs]
    found = paired(ours, theirs)
    assert found and found.low is not None and found.low > 0
    alone = interval(ours)
    assert alone and alone.low is not None and alone.high is not None
    assert found.high - found.low < (alone.high - alone.low) / 10  # type: ignore[operator]


def test_the_same_rows_give_the_same_interval() -> None:
    """In every run."""
    values = [0.1, 0.9, 0.4, 0.3]
    assert interval(values) == interval(list(values))


def test_no_difference_is_sure_to_be_none() -> None:
    """A tie is not sure to be better."""
    assert paired([0.5, 0.7], [0.5, 0.7]) == Interval(mean=0, low=0, high=0, rows=2)


def test_too_little_to_tell() -> None:
    """One row has no interval; none, or a value that is no number, has no mean either."""
    assert interval([0.3]) == Interval(mean=0.3, low=None, high=None, rows=1)
    assert interval([]) is None
    assert interval([0.1, math.nan]) is None
    assert interval([0.1, math.inf]) is None


def test_lists_of_different_lengths_are_refused() -> None:
    """They could not be pairs."""
    with pytest.raises(ValueError, match="zip"):
        paired([0.1], [0.1, 0.2])
