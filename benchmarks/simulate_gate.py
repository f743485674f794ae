"""How often the gate's interval calls a gain significant where there is none.

    python benchmarks/simulate_gate.py                               # 10,000 trials, 3 seeds
    python benchmarks/simulate_gate.py --methods all --seeds 1 --trials 2000
    python benchmarks/simulate_gate.py --gain 0.05                   # how often a gain is seen

Each trial draws the differences between two models that are equally good, row by row, and asks
each method whether the lower end of its 95 % interval lies above 0: nominally in 2.5 % of trials.
Differences of a group are correlated (a Gaussian copula); their mean is exactly 0.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy
from scipy.special import ndtr
from scipy.stats import beta
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vlmtune.evaluation.intervals import CONFIDENCE, ends

Array = Any  # float64
NOMINAL = (1 - CONFIDENCE) / 2
RESAMPLES, AT_ONCE = 2_000, 1_000
GROUPS = (30, 50, 200)
SIZES: dict[str, list[int]] = {"1": [1], "2": [2], "4": [4], "8": [8], "1 to 8": [1, 2, 4, 8]}
CORRELATIONS = (0.5, 0.9)


# --- Differences: from a standard normal value to a difference of mean 0 ----------------------


def normal(z: Array) -> Array:
    """Standard deviation 0.1."""
    return 0.1 * z


def skewed(a: float, b: float, sign: int) -> Callable[[Array], Array]:
    """A beta distribution less its mean; sign -1: a long tail of losses."""
    places = numpy.linspace(-7, 7, 8001)
    values = beta.ppf(ndtr(places), a, b)
    return lambda z: sign * (numpy.interp(z, places, values) - a / (a + b))


def lumpy(z: Array) -> Array:
    """1 row in 10 loses 0.3, 3 gain 0.1, the others are the same text."""
    share = ndtr(z)
    return numpy.where(share < 0.1, -0.3, numpy.where(share > 0.7, 0.1, 0.0))


SHAPES: dict[str, Callable[[Array], Array]] = {
    "normal": normal,
    "skewness -1": skewed(1, 4, -1),  # 1.05
    "skewness +1": skewed(1, 4, 1),
    "skewness -2": skewed(0.5, 5, -1),  # 1.94
    "lumpy, -1.8": lumpy,
}


def draw(
    shape: Callable[[Array], Array],
    sizes: Array,
    correlation: float,
    trials: int,
    random: numpy.random.Generator,
) -> Array:
    """Differences, [trials, rows]; the rows of a group stand together."""
    of_group = numpy.repeat(random.standard_normal((trials, len(sizes))), sizes, axis=1)
    of_row = random.standard_normal(of_group.shape)
    return shape(numpy.sqrt(correlation) * of_group + numpy.sqrt(1 - correlation) * of_row)


# --- Methods: differences [trials, rows] and sizes [groups] to lower ends [trials] -------------


def chosen(rows: Array, sizes: Array) -> Array:
    """Of the library: t on the means of groups, with Hall's correction."""
    return ends(group_means(rows, sizes))[0]


def t_groups(rows: Array, sizes: Array) -> Array:
    """Student's t on the means of groups."""
    return t_end(group_means(rows, sizes))


def t_weighted(rows: Array, sizes: Array) -> Array:
    """The mean of rows, with the standard error of the ratio of sums over groups."""
    sums, count = group_means(rows, sizes) * sizes, len(sizes)
    mean = rows.mean(axis=1)
    variance = ((sums - mean[:, None] * sizes) ** 2).sum(axis=1) * count / (count - 1)
    return mean - student.ppf(1 - NOMINAL, count - 1) * numpy.sqrt(variance) / sizes.sum()


def bca_groups(rows: Array, sizes: Array) -> Array:
    """Bias-corrected and accelerated bootstrap of the means of groups (Efron 1987)."""
    from scipy.stats import norm, skew

    means = group_means(rows, sizes)
    drawn = numpy.sort(means @ resamples(means.shape[1]).T, axis=1)
    below = (drawn < means.mean(axis=1, keepdims=True)).mean(axis=1)
    bias, acceleration = norm.ppf(below), skew(means, axis=1) / (6 * numpy.sqrt(means.shape[1]))
    z = bias + norm.ppf(NOMINAL)
    places = norm.cdf(bias + z / (1 - acceleration * z)) * RESAMPLES
    places = places.astype(int).clip(0, RESAMPLES - 1)
    return numpy.take_along_axis(drawn, places[:, None], axis=1)[:, 0]


def bootstrap_t_groups(rows: Array, sizes: Array) -> Array:
    """Bootstrap-t of the means of groups (Efron & Tibshirani 1993, chapter 12)."""
    means = group_means(rows, sizes)
    mean, error = means.mean(axis=1, keepdims=True), means.std(axis=1, keepdims=True)
    drawn, squares = (values @ resamples(means.shape[1]).T for values in (means, means**2))
    spread = numpy.sqrt(numpy.maximum(squares - drawn**2, 1e-12))
    quantile = numpy.quantile((drawn - mean) / spread, 1 - NOMINAL, axis=1)
    return mean[:, 0] - quantile * error[:, 0]


def percentile_groups(rows: Array, sizes: Array) -> Array:
    """Percentile bootstrap of the means of groups."""
    return percentile(group_means(rows, sizes))


def t_rows(rows: Array, sizes: Array) -> Array:
    """Student's t on rows, as if they were independent."""
    return t_end(rows)


def percentile_rows(rows: Array, sizes: Array) -> Array:
    """Percentile bootstrap of rows, as if they were independent."""
    return percentile(rows)


METHODS = {
    "chosen": chosen,
    "t, groups": t_groups,
    "t, groups by rows": t_weighted,
    "BCa, groups": bca_groups,
    "bootstrap-t, groups": bootstrap_t_groups,
    "percentile, groups": percentile_groups,
    "percentile, rows": percentile_rows,
    "t, rows": t_rows,
}


def group_means(rows: Array, sizes: Array) -> Array:
    """[trials, groups]."""
    starts = numpy.cumsum(sizes) - sizes
    return numpy.add.reduceat(rows, starts, axis=1) / sizes


def t_end(values: Array) -> Array:
    count = values.shape[1]
    error = values.std(axis=1, ddof=1) / numpy.sqrt(count)
    return values.mean(axis=1) - student.ppf(1 - NOMINAL, count - 1) * error


def percentile(values: Array) -> Array:
    return numpy.quantile(values @ resamples(values.shape[1]).T, NOMINAL, axis=1)


@cache
def resamples(count: int) -> Array:
    """How often each value is drawn, over `count`: [resamples, count], always the same."""
    random = numpy.random.default_rng(0)
    return random.multinomial(count, numpy.full(count, 1 / count), RESAMPLES) / count


# --- Trials ------------------------------------------------------------------------------------


def rates(
    cell: tuple[str, int, str, float], methods: list[str], trials: int, seed: int, gain: float = 0
) -> Array:
    """Of each method, the share of trials in which a gain is called significant.

    Args:
        cell: shape of the differences, groups, rows of each and correlation.
        gain: the true one.
    """
    shape, groups, size, correlation = cell
    sizes = numpy.resize(SIZES[size], groups)
    random = numpy.random.default_rng([seed, *" ".join(map(str, cell)).encode()])
    significant = numpy.zeros(len(methods))
    for start in range(0, trials, AT_ONCE):
        count = min(AT_ONCE, trials - start)
        rows = draw(SHAPES[shape], sizes, correlation, count, random) + gain
        significant += [(METHODS[method](rows, sizes) > 0).sum() for method in methods]
    return significant / trials


def main() -> None:
    """Print the lowest and the highest rate of each method over sizes, correlations and seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["chosen"], choices=["all", *METHODS])
    parser.add_argument("--groups", type=int, nargs="+", default=list(GROUPS))
    parser.add_argument("--gain", type=float, default=0.0)
    asked = parser.parse_args()
    methods = list(METHODS) if "all" in asked.methods else asked.methods
    began = time.monotonic()
    print("| differences | groups |", " | ".join(methods), "|")
    print("|---|---|" + "---|" * len(methods))
    for shape in SHAPES:
        for groups in asked.groups:
            found = numpy.stack(
                [
                    rates(
                        (shape, groups, size, correlation), methods, asked.trials, seed, asked.gain
                    )
                    for size in SIZES
                    for correlation in CORRELATIONS
                    for seed in range(asked.seeds)
                ]
            )
            ends_of = zip(100 * found.min(axis=0), 100 * found.max(axis=0), strict=True)
            ranges = [f"{low:.1f} to {high:.1f}" for low, high in ends_of]
            print(f"| {shape} | {groups} |", " | ".join(ranges), "|", flush=True)
    print(f"{asked.trials} trials, {asked.seeds} seeds, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
