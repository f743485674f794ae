"""Confidence intervals of means and differences: groups of held-out rows are the sample.

Rows of a group (variants of a product) score alike, so the mean of each group counts once, however
many rows it has. `benchmarks/simulate_gate.py` measures how often no gain is called significant.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE = 0.95  # two-sided: the lower end alone is a one-sided bound at 97.5 %


class Interval(BaseModel):
    """A mean with its 95 % confidence interval.

    Attributes:
        mean: over the groups, each of which counts as the mean of its rows.
        low, high: bounds; None where there are too few groups to tell.
        groups: how many.
        rows: in all groups.
    """

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float | None
    high: float | None
    groups: int
    rows: int

    def within(self, least: float, most: float) -> Self:
        """The same interval without values that the metric cannot take."""
        if self.low is None or self.high is None:
            return self
        return self.model_copy(update={"low": max(self.low, least), "high": min(self.high, most)})


def interval(values: Sequence[float], groups: Sequence[str]) -> Interval | None:
    """The mean over groups and its interval.

    For paired scores of two models, give the differences row by row.

    Args:
        groups: key of each value's group.

    Returns:
        None if there are no rows, or a value is not finite.
    """
    import numpy

    if not values or not all(map(math.isfinite, values)):
        return None
    _, numbers, sizes = numpy.unique(numpy.asarray(groups), return_inverse=True, return_counts=True)
    means = numpy.bincount(numbers, weights=numpy.asarray(values, dtype=float)) / sizes
    low, high = ends(means) if len(means) > 1 else (None, None)
    return Interval(
        mean=float(means.mean()),
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        groups=len(means),
        rows=len(values),
    )


def paired(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str]
) -> Interval | None:
    """How much better ours are, row by row."""
    return interval([one - other for one, other in zip(ours, theirs, strict=True)], groups)


def ends(means: "NDArray") -> "tuple[NDArray, NDArray]":
    """Both ends of the interval of a mean: Student's t, corrected for skewness by Hall's cubic
    transformation (Hall 1992, J. R. Stat. Soc. B 54, 221-228).

    Args:
        means: [..., groups], at least two groups.

    Returns:
        [...] each.
    """
    import numpy
    from scipy.stats import t as student

    count = means.shape[-1]
    mean = means.mean(axis=-1)
    deviations = means - mean[..., None]
    spread = means.std(axis=-1)
    third = (deviations**3).mean(axis=-1)
    skewness = numpy.divide(third, spread**3, out=numpy.zeros_like(third), where=spread > 0)
    error = means.std(axis=-1, ddof=1) / math.sqrt(count)
    quantile = student.ppf((1 + CONFIDENCE) / 2, count - 1)
    bend = skewness / (3 * math.sqrt(count))

    def end(quantile: float) -> "NDArray":
        """Solves ((1 + bend t)^3 - 1) / (3 bend) + bend / 2 = quantile for t."""
        straight = numpy.abs(bend) < 1e-8
        curved = numpy.where(straight, 1.0, bend)
        solved = (numpy.cbrt(1 + 3 * curved * (quantile - curved / 2)) - 1) / curved
        return mean - numpy.where(straight, quantile, solved) * error

    return end(quantile), end(-quantile)
