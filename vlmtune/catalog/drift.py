"""Whether a catalog as a whole has drifted from the previous one.

The statistics are SciPy's. Evidently has the same tests, but brings dozens of packages and a
dashboard of its own, and hides which statistic led to a verdict.

With many rows a test calls every difference significant, and with few rows every difference is
large. So something has drifted only if both hold: its p-value, after Holm's correction for the
number of tests, is below `SIGNIFICANCE`, and its effect is above `EFFECT`.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.catalog_reader import CatalogReader, read_columns
from vlmtune.config.data import DESCRIPTION
from vlmtune.pages.histogram import Histogram, histogram

if TYPE_CHECKING:
    import numpy

SIGNIFICANCE = 0.01
EFFECT = 0.1  # what Cohen (1988) calls a small effect of w, which is Cramér's V for two rows
MIN_ROWS = 30  # of each catalog; with fewer nothing is tested
MIN_EXPECTED = 5  # rows of a value; rarer values are pooled (Cochran's rule for chi-squared)
CATEGORY = "category"
LENGTH, WORDS = "description length", "words of the descriptions"
FEW_VALUES = 50  # a field with no more may be a category
SHOWN_VALUES = 20
FREQUENT_WORDS, MOVED_WORDS, VOCABULARY = 200, 8, 300_000
SAMPLED_ROWS, SHUFFLES = 2000, 1999  # of each catalog, for the test of the words

Measured = tuple[float, float, float]  # statistic, p-value, effect


class Verdict(StrEnum):
    """What a comparison says."""

    STEADY = "steady"
    DRIFTED = "drifted"
    TOO_FEW = "too few rows"


@dataclass(frozen=True)
class ValueCount:
    """Rows of the old and of the new catalog that have a value or a word."""

    value: str
    old: int
    new: int


@dataclass(frozen=True)
class Drift:
    """One property of the two catalogs, compared.

    Attributes:
        what: the property, as `category` or `description length`.
        test: name of the test.
        effect_name: name of the effect size, which lies between 0 and 1.
        old_total, new_total: rows, pictures or texts that were compared.
        statistic, p_value, effect: of the test; None with too few rows.
        corrected_p: the p-value after Holm's correction.
        verdict: drifted if `corrected_p` < 0.01 and `effect` > 0.1.
        counts: the most frequent values; of words those that rose most, then those that fell most.
        histogram: of numbers, with the series `before` and `now`.
    """

    what: str
    test: str
    effect_name: str
    old_total: int
    new_total: int
    statistic: float | None = None
    p_value: float | None = None
    effect: float | None = None
    corrected_p: float | None = None
    verdict: Verdict = Verdict.TOO_FEW
    counts: list[ValueCount] = field(default_factory=list)
    histogram: Histogram | None = None


def compare_properties(
    before: CatalogReader, now: CatalogReader, categories: list[str]
) -> list[Drift]:
    """Compare two catalogs as a whole, property by property.

    Args:
        before, now: the old and the new catalog.
        categories: fields of both catalogs that may be compared value by value.
    """
    return _judge(
        [
            *_compare_categories(before, now, categories),
            _compare_numbers(LENGTH, before.lengths(), now.lengths()),
            _compare_numbers("longest side of the pictures", before.sides(), now.sides()),
            _compare_words(before, now),
            _compare_counts("language", before.languages(), now.languages()),
        ]
    )


def _compare_categories(
    before: CatalogReader, now: CatalogReader, fields: list[str]
) -> list[Drift]:
    """The field `category` or, if there is none, each field with few different values."""
    if CATEGORY in fields:
        counts = [(CATEGORY, Counter(before.texts(CATEGORY)), Counter(now.texts(CATEGORY)))]
    else:
        counts = [
            (name, old, new)
            for name in fields
            if name != DESCRIPTION
            and (old := few_values(before.catalog, name)) is not None
            and (new := few_values(now.catalog, name)) is not None
        ]
    return [_compare_counts(name, old, new) for name, old, new in counts]


def few_values(catalog: Catalog, column: str) -> Counter[str] | None:
    """Value -> rows, if there are few enough values to be categories; None otherwise."""
    counts: Counter[str] = Counter()
    for (value,) in read_columns(catalog.rows, column):
        counts[value or ""] += 1
        if len(counts) > FEW_VALUES:
            return None
    return counts if len(counts) <= max(1, counts.total() // 2) else None


def _compare_counts(what: str, old: Counter[str], new: Counter[str]) -> Drift:
    frequent = [value for value, _ in (old + new).most_common(SHOWN_VALUES)]
    drift = Drift(
        what,
        "chi-squared",
        "Cramér's V",
        old.total(),
        new.total(),
        counts=[ValueCount(value, old[value], new[value]) for value in frequent],
    )
    return _measured(drift, _test_counts, old, new)


def _compare_numbers(what: str, old: list[int], new: list[int]) -> Drift:
    counted = histogram({"before": old, "now": new})
    names = ("Kolmogorov-Smirnov", "largest gap of the distributions")
    drift = Drift(what, *names, len(old), len(new), histogram=counted)
    return _measured(drift, _test_numbers, old, new)


def _measured(drift: Drift, test: Callable[[Any, Any], Measured | None], *samples: Any) -> Drift:
    enough = min(drift.old_total, drift.new_total) >= MIN_ROWS
    measured = test(*samples) if enough else None
    if measured is None:
        return drift
    statistic, p_value, effect = map(float, measured)
    return replace(drift, statistic=statistic, p_value=p_value, effect=effect)


def _test_counts(old: Counter[str], new: Counter[str]) -> Measured | None:
    """Chi-squared; None if all values are too rare for it."""
    from scipy.stats import chi2_contingency

    if len(old | new) == 1:
        return 0.0, 1.0, 0.0
    table = _pool_rare_values(old, new)
    if len(table) < 2:
        return None
    found = chi2_contingency(table, correction=False)
    return found.statistic, found.pvalue, math.sqrt(found.statistic / sum(map(sum, table)))


def _pool_rare_values(old: Counter[str], new: Counter[str]) -> list[tuple[int, int]]:
    """(old, new) rows of each value that is frequent enough, and of all others together."""
    share = min(old.total(), new.total()) / (old.total() + new.total())
    pairs = [(old[value], new[value]) for value in old | new]
    frequent = [pair for pair in pairs if sum(pair) * share >= MIN_EXPECTED]
    others = (old.total() - sum(a for a, _ in frequent), new.total() - sum(b for _, b in frequent))
    return [*frequent, others] if sum(others) * share >= MIN_EXPECTED else frequent


def _test_numbers(old: list[int], new: list[int]) -> Measured:
    from scipy.stats import ks_2samp

    found = ks_2samp(old, new, method="asymp")
    return found.statistic, found.pvalue, found.statistic


def _compare_words(before: CatalogReader, now: CatalogReader) -> Drift:
    """The most frequent words of both; a word counts once a description."""
    from scipy.spatial.distance import jensenshannon

    old, new = (_word_counts(side.texts(DESCRIPTION)) for side in (before, now))
    totals = len(before.catalog.rows), len(now.catalog.rows)
    old_total, new_total = (max(1, total) for total in totals)

    def change(word: str) -> float:
        return new[word] / new_total - old[word] / old_total

    words = sorted(old | new, key=lambda word: -old[word] / old_total - new[word] / new_total)
    frequent = words[:FREQUENT_WORDS]
    risen = sorted((word for word in frequent if change(word) > 0), key=change)[-MOVED_WORDS:]
    fallen = sorted((word for word in frequent if change(word) < 0), key=change)[:MOVED_WORDS]
    drift = Drift(
        WORDS,
        "chi-squared, rows shuffled",
        "Jensen-Shannon distance",
        *totals,
        counts=[ValueCount(word, old[word], new[word]) for word in risen[::-1] + fallen],
    )
    if min(totals) < MIN_ROWS or not frequent:
        return drift
    samples = [_occurrences(side.catalog, frequent) for side in (before, now)]
    statistic, p_value = _shuffle_test(*samples)
    shares = [[counts[word] for word in frequent] for counts in (old, new)]
    effect = float(jensenshannon(*shares, base=2)) if all(map(any, shares)) else 1.0
    return replace(drift, statistic=statistic, p_value=p_value, effect=effect)


def _word_counts(texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words_of(text))
        if len(counts) > VOCABULARY:  # so that memory stays flat; the rarest cannot matter
            counts = Counter(dict(counts.most_common(VOCABULARY // 2)))
    return counts


def words_of(text: str) -> set[str]:
    """The different words of a text; of scripts without spaces, the pairs of characters."""
    runs = _unspaced().findall(text)
    pairs = {run[at : at + 2] for run in runs for at in range(max(1, len(run) - 1))}
    spaced = _unspaced().sub(" ", text).casefold().split()
    words = {each if each.isalnum() else each.strip(_punctuation()) for each in spaced}
    return (pairs | words) - {""}


@cache
def _unspaced() -> re.Pattern[str]:
    """Runs of Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
    return re.compile(
        "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
        "\uf900-\ufaff\U00020000-\U0003ffff]+"
    )


@cache
def _punctuation() -> str:
    characters = map(chr, range(0x10000))
    return "".join(each for each in characters if unicodedata.category(each)[0] in "PS")


def _occurrences(catalog: Catalog, words: list[str]) -> "numpy.ndarray":
    """Whether a row has a word, of some evenly spread rows; (rows, words), 0 or 1."""
    import numpy

    stride = math.ceil(len(catalog.rows) / SAMPLED_ROWS)
    rows = catalog.rows.select(range(0, len(catalog.rows), stride))
    sets = [words_of(text or "") for (text,) in read_columns(rows, DESCRIPTION)]
    return numpy.array([[word in each for word in words] for each in sets], dtype="float32")


def _shuffle_test(old: "numpy.ndarray", new: "numpy.ndarray") -> tuple[float, float]:
    """Chi-squared and how often it is as large when rows are dealt to the catalogs at random.

    Words of one row come together, so that the usual chi-squared distribution would be far too
    narrow.
    """
    import numpy

    rows = numpy.concatenate([old, new])
    rows = rows[:, rows.any(axis=0)]
    is_new = numpy.repeat([0.0, 1.0], [len(old), len(new)]).astype("float32")
    share = len(new) / len(rows)
    expected = rows.sum(axis=0) * share

    def chi_squared(labels: "numpy.ndarray") -> float:
        return float(((labels @ rows - expected) ** 2 / (expected * (1 - share))).sum())

    observed = chi_squared(is_new)
    random = numpy.random.default_rng(0)
    larger = sum(chi_squared(random.permutation(is_new)) >= observed for _ in range(SHUFFLES))
    return observed, (1 + larger) / (1 + SHUFFLES)


def _judge(drifts: list[Drift]) -> list[Drift]:
    """Verdicts, with p-values after Holm's correction: the smallest times the number of tests."""
    tested = sorted((d.p_value, n) for n, d in enumerate(drifts) if d.p_value is not None)
    judged, largest = list(drifts), 0.0
    for rank, (p_value, number) in enumerate(tested):
        largest = max(largest, min(1.0, p_value * (len(tested) - rank)))
        has_drifted = largest < SIGNIFICANCE and (drifts[number].effect or 0) > EFFECT
        verdict = Verdict.DRIFTED if has_drifted else Verdict.STEADY
        judged[number] = replace(drifts[number], corrected_p=largest, verdict=verdict)
    return judged
