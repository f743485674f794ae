"""How sure a mean or a difference is: bootstrap over rows."""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

RESAMPLES = 2_000
CONFIDENCE = 0.95


class Interval(BaseModel):
    """A mean with its 95 % confidence interval.

    Attributes:
        mean: over the rows.
        low, high: bounds; None where there are too few rows to tell.
        rows: how many.
    """

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float | None
    high: float | None
    rows: int


def interval(values: Sequence[float]) -> Interval | None:
    """Percentile bootstrap of a mean, always with the same resamples.

    For paired scores of two models, give the differences row by row: the rows are then drawn in
    pairs (Efron & Tibshirani 1993, chapter 13; Koehn 2004 for texts).

    Returns:
        None if there are no rows, or a value is not finite.
    """
    import numpy
    from scipy.stats import bootstrap

    if not values or not all(map(math.isfinite, values)):
        return None
    mean = float(numpy.mean(values))
    if len(values) == 1:
        return Interval(mean=mean, low=None, high=None, rows=1)
    found = bootstrap(
        (numpy.asarray(values, dtype=float),),
        numpy.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=numpy.random.default_rng(0),
        batch=max(1, 10_000_000 // len(values)),
    ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high), rows=len(values))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """How much better ours are, row by row."""
    return interval([one - other for one, other in zip(ours, theirs, strict=True)])
