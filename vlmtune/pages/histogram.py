"""Histograms of whole numbers, of one catalog or of two laid over each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlmtune.pages import BOTTOM, LEFT, PLOT_HEIGHT, PLOT_WIDTH, RIGHT, TOP, round_ticks, scale

BARS = 30  # about so many


@dataclass(frozen=True)
class Histogram:
    """How many numbers fall between edges.

    Attributes:
        edges: of the bars, one more than there are bars; a number on an edge is right of it.
        counts: name of a series -> numbers in each bar.
        beyond: name of a series -> numbers right of the last edge.
        highest: the highest number of all.
    """

    edges: list[int]
    counts: dict[str, list[int]]
    beyond: dict[str, int]
    highest: int


def histogram(series: dict[str, Sequence[int]]) -> Histogram | None:
    """Count the numbers of each series between common round edges; None if there are none."""
    import numpy

    arrays = {name: numpy.asarray(values, dtype=int) for name, values in series.items()}
    together = numpy.concatenate(list(arrays.values()))
    if not len(together):
        return None
    low, highest = int(together.min()), int(together.max())
    usual = int(numpy.quantile(together, 0.99))
    edges = _edges(low, highest if highest <= 2 * usual else usual)
    return Histogram(
        edges=edges,
        counts={
            name: numpy.histogram(values[values < edges[-1]], edges)[0].tolist()
            for name, values in arrays.items()
        },
        beyond={name: int((values >= edges[-1]).sum()) for name, values in arrays.items()},
        highest=highest,
    )


def _edges(low: int, high: int) -> list[int]:
    ticks = round_ticks(low, max(high, low + 10), BARS)
    step = max(1, round(ticks[1] - ticks[0]))
    first = low // step * step
    bars = (high - first) // step + 1
    return [first + number * step for number in range(bars + 1)]


@dataclass(frozen=True)
class Bar:
    """One bar in SVG units, with what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    meaning: str


@dataclass(frozen=True)
class HistogramPlot:
    """Everything a template needs to draw: bars of the last series, outlines of the others.

    Ticks are (position, label); outlines are series name -> points of a line.
    """

    bars: list[Bar]
    outlines: dict[str, list[tuple[float, float]]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    beyond: int
    last_edge: int
    highest: int
    width: int = PLOT_WIDTH
    height: int = PLOT_HEIGHT
    left: int = LEFT
    right: int = PLOT_WIDTH - RIGHT
    bottom: int = PLOT_HEIGHT - BOTTOM


def plot_histogram(counted: Histogram) -> HistogramPlot:
    """Draw one series by its counts; two or more by their shares, so that sizes do not matter."""
    heights = {name: _heights(counted, name) for name in counted.counts}
    *others, shown = heights
    top = max(max(values) for values in heights.values()) or 1.0
    unit = "%" if others else ""
    edges = counted.edges
    x_ticks = [tick for tick in round_ticks(edges[0], edges[-1], 8) if tick == int(tick)]
    y_ticks = [tick for tick in round_ticks(0, top) if others or tick == int(tick)]
    top = max(top, y_ticks[-1])

    def x(value: float) -> float:
        return scale(edges[0], edges[-1], LEFT, PLOT_WIDTH - RIGHT, value)

    def y(value: float) -> float:
        return scale(0, top, PLOT_HEIGHT - BOTTOM, TOP, value)

    return HistogramPlot(
        bars=[
            Bar(
                x=x(start),
                y=y(height),
                width=round(x(end) - x(start), 1),
                height=round(y(0) - y(height), 1),
                meaning=f"{_interval(start, end)}: {height:,.4g}{unit}",
            )
            for start, end, height in zip(edges, edges[1:], heights[shown], strict=False)
        ],
        outlines={
            name: [
                (x(edge), y(height))
                for start, end, height in zip(edges, edges[1:], heights[name], strict=False)
                for edge in (start, end)
            ]
            for name in others
        },
        x_ticks=[(x(tick), f"{tick:,.0f}") for tick in x_ticks],
        y_ticks=[(y(tick), f"{tick:,g}{unit}") for tick in y_ticks],
        beyond=counted.beyond[shown],
        last_edge=edges[-1],
        highest=counted.highest,
    )


def _heights(counted: Histogram, name: str) -> list[float]:
    counts = counted.counts[name]
    if len(counted.counts) == 1:
        return [float(count) for count in counts]
    total = sum(counts) + counted.beyond[name] or 1
    return [100 * count / total for count in counts]


def _interval(start: int, end: int) -> str:
    return f"{start:,}" if end == start + 1 else f"{start:,} to {end - 1:,}"
