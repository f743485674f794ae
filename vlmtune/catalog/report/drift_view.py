"""A drift as the data report draws it."""

from dataclasses import dataclass

from vlmtune.catalog.drift import LENGTH, WORDS, Drift
from vlmtune.pages.histogram import HistogramPlot, plot_histogram


@dataclass(frozen=True)
class SharePair:
    """Shares of a value before and now, 0 to 1, and the lengths of their bars, 0 to 100."""

    value: str
    old: float
    new: float
    old_length: float
    new_length: float


@dataclass(frozen=True)
class DriftView:
    """A drift with its drawing: a histogram, or pairs of bars."""

    drift: Drift
    plot: HistogramPlot | None
    pairs: list[SharePair]

    @property
    def unit(self) -> str:
        """Of the histogram's horizontal axis."""
        return "characters" if self.drift.what == LENGTH else "pixels"

    @property
    def is_words(self) -> bool:
        """Whether the pairs are words, of which the changed ones are listed."""
        return self.drift.what == WORDS

    @property
    def risen(self) -> list[SharePair]:
        """The pairs that became more frequent."""
        return [pair for pair in self.pairs if pair.new > pair.old]

    @property
    def fallen(self) -> list[SharePair]:
        """The pairs that became less frequent."""
        return [pair for pair in self.pairs if pair.new < pair.old]


def drift_view(drift: Drift) -> DriftView:
    """Work out the shares and the lengths of the bars."""
    plot = plot_histogram(drift.histogram) if drift.histogram else None
    old_total, new_total = drift.old_total or 1, drift.new_total or 1
    shares = [(each.value, each.old / old_total, each.new / new_total) for each in drift.counts]
    longest = max((max(old, new) for _, old, new in shares), default=0.0) or 1.0
    pairs = [
        SharePair(value, old, new, round(100 * old / longest, 1), round(100 * new / longest, 1))
        for value, old, new in shares
    ]
    return DriftView(drift, plot, pairs)
