"""The data report: a web page about the state of a catalog, for a merchandiser."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.catalog_reader import (
    CatalogReader,
    product_of,
    read_columns,
    read_products,
)
from vlmtune.catalog.changes import CatalogChanges
from vlmtune.catalog.drift import CATEGORY, EFFECT, MIN_ROWS, SIGNIFICANCE, few_values
from vlmtune.catalog.ledger import Decision, RowLedger, SharedValue, Side
from vlmtune.catalog.report.drift_view import drift_view
from vlmtune.catalog.report.reasons import reason_meaning
from vlmtune.catalog.report.row_cards import RowCard, RowCards
from vlmtune.config.data import DESCRIPTION, DataConfig
from vlmtune.pages import page_environment
from vlmtune.pages.histogram import HistogramPlot, histogram, plot_histogram

TEMPLATES = Path(__file__).resolve().parent / "templates"

# What keeps the page small enough to mail.
SAMPLES, CATEGORIES_SAMPLED = 24, 8
SHOWN_QUARANTINED, SHOWN_EXTREMES = 24, 8
SHOWN_VALUES, SHOWN_GROUPS, SHOWN_IN_GROUP = 20, 12, 6
SHOWN_EXAMPLES = 3  # of a reason


def render_data_report(
    catalog: Catalog,
    ledger: RowLedger,
    data: DataConfig,
    changes: CatalogChanges | None,
    title: str,
    warnings: Mapping[str, str] | None = None,
) -> str:
    """Write the state of a catalog as one self-contained HTML page.

    Args:
        catalog: the rows that can be trained on.
        ledger: what became of every row of the source.
        data: what the fields mean and what is asked of them.
        changes: against the previous catalog; None for a first one.
        title: the page's heading.
        warnings: config key -> what would keep a model back.

    Returns:
        HTML in which every text of the catalog is escaped; about 120 pictures at most.
    """
    rows = RowCards(catalog, ledger)
    category = _category_field(catalog, data)
    page = page_environment(TEMPLATES).get_template("data_report.html.j2")
    return page.render(
        title=title,
        facts=_facts(catalog, ledger),
        state=_state(ledger, data),
        warnings=warnings or {},
        reasons=_reasons(ledger),
        quarantined=rows.cards(_first_quarantined(ledger)),
        category=category,
        categories=_bars(Counter(rows.reader.texts(category))) if category else [],
        samples=_samples(rows, category),
        languages=_bars(rows.reader.languages()),
        histograms=_histograms(rows.reader),
        sides=_sides(ledger),
        by=", ".join(data.held_out.fields),
        shared=_shared_values(catalog, data.held_out.fields),
        groups=_groups_of_products(rows, data.held_out.fields),
        common=_common_values(rows),
        max_sharing=data.duplicates.max_sharing_products,
        sharing=_held_out_sharing(rows),
        longest=rows.cards(_longest(ledger)),
        smallest=rows.cards(_smallest(ledger)),
        changes=changes,
        drift=[drift_view(drift) for drift in changes.drift] if changes else [],
        significance=SIGNIFICANCE,
        threshold=EFFECT,
        min_rows=MIN_ROWS,
    )


def _facts(catalog: Catalog, ledger: RowLedger) -> dict[str, str]:
    return {
        "Source": catalog.source,
        "Version": catalog.version,
        "Previous ledger": ledger.previous or "none",
        "Pictures decoded": f"{ledger.pictures_decoded:,}",
        "Pictures known from before": f"{ledger.pictures_known:,}",
    }


@dataclass(frozen=True)
class State:
    """The headline: how many rows there are and whether training may go on."""

    counts: dict[str, int]
    share: float
    allowed: float
    may_train: bool


def _state(ledger: RowLedger, data: DataConfig) -> State:
    counts = ledger.counts
    share = counts["quarantined"] / (counts["rows_read"] or 1)
    may_train = share <= data.max_quarantine and counts["quarantined"] < counts["rows_read"]
    return State(counts, share, data.max_quarantine, may_train)


@dataclass
class ReasonRow:
    """How many rows have a reason, by what became of them, with the first of them."""

    meaning: str
    repaired: int
    quarantined: int
    duplicate: int
    examples: list[str]


def _reasons(ledger: RowLedger) -> list[ReasonRow]:
    rows = {code: ReasonRow(reason_meaning(code), 0, 0, 0, []) for code in ledger.reason_counts}
    for decision, reasons, label in read_columns(ledger.lines, "decision", "reasons", "label"):
        for code in {reason["code"] for reason in reasons}:
            row = rows[code]
            row.quarantined += decision == Decision.QUARANTINED
            row.duplicate += decision == Decision.DUPLICATE
            row.repaired += Decision(decision).in_catalog
            row.examples += [label] if len(row.examples) < SHOWN_EXAMPLES else []
    return list(rows.values())


@dataclass(frozen=True)
class CountBar:
    """A value with its rows and the length of its bar, 0 to 100."""

    value: str
    rows: int
    length: float


def _bars(counts: Counter[str]) -> list[CountBar]:
    """The most frequent values, and one bar for all others."""
    shown = counts.most_common(SHOWN_VALUES)
    if len(counts) > SHOWN_VALUES:
        others = counts.total() - sum(rows for _, rows in shown)
        shown.append((f"({len(counts) - SHOWN_VALUES:,} others)", others))
    longest = max((rows for _, rows in shown), default=1)
    return [CountBar(value, rows, round(100 * rows / longest, 1)) for value, rows in shown]


def _category_field(catalog: Catalog, data: DataConfig) -> str | None:
    if CATEGORY in data.texts:
        return CATEGORY
    fields = [name for name in data.texts if name not in (DESCRIPTION, *data.held_out.fields)]
    return next((name for name in fields if few_values(catalog, name)), None)


@dataclass(frozen=True)
class Sample:
    """Some rows of one category."""

    category: str
    rows: list[RowCard]


def _samples(rows: RowCards, category: str | None) -> list[Sample]:
    """A few rows of each of the largest categories."""
    values = rows.reader.texts(category) if category else ("" for _ in rows.numbers)
    by_value: dict[str, list[str]] = defaultdict(list)
    for row_id, value in zip(rows.numbers, values, strict=True):
        by_value[value].append(row_id)
    largest = sorted(by_value, key=lambda value: -len(by_value[value]))[:CATEGORIES_SAMPLED]
    each = SAMPLES // (len(largest) or 1)
    return [Sample(value, rows.cards(rows.positions(by_value[value][:each]))) for value in largest]


@dataclass(frozen=True)
class NamedPlot:
    """A histogram with its heading and the unit of its horizontal axis."""

    name: str
    unit: str
    plot: HistogramPlot


def _histograms(reader: CatalogReader) -> list[NamedPlot]:
    series = [
        ("Tokens of a row", "tokens", [tokens for (tokens,) in reader.lines("tokens") if tokens]),
        ("Length of the descriptions", "characters", reader.lengths()),
        ("Longest side of the pictures", "pixels", reader.sides()),
    ]
    counted = [(name, unit, histogram({"now": values})) for name, unit, values in series]
    return [NamedPlot(name, unit, plot_histogram(each)) for name, unit, each in counted if each]


def _first_quarantined(ledger: RowLedger) -> list[int]:
    decisions = enumerate(ledger.lines["decision"])
    positions = (position for position, each in decisions if each == Decision.QUARANTINED)
    return list(islice(positions, SHOWN_QUARANTINED))


def _longest(ledger: RowLedger) -> list[int]:
    """Positions of the rows with most tokens."""
    known = (
        (tokens, -position)
        for position, (decision, tokens) in _numbered(ledger, "decision", "tokens")
        if tokens and Decision(decision).in_catalog
    )
    return [-position for _, position in heapq.nlargest(SHOWN_EXTREMES, known)]


def _smallest(ledger: RowLedger) -> list[int]:
    """Positions of the rows whose picture has the shortest side."""
    known = (
        (min(min(each["width"], each["height"]) for each in pictures), position)
        for position, (decision, pictures) in _numbered(ledger, "decision", "pictures")
        if Decision(decision).in_catalog and pictures
    )
    return [position for _, position in heapq.nsmallest(SHOWN_EXTREMES, known)]


def _numbered(ledger: RowLedger, *columns: str) -> Iterable[tuple[int, tuple[Any, ...]]]:
    return enumerate(read_columns(ledger.lines, *columns))


@dataclass(frozen=True)
class SharedValues:
    """Values of `held_out.by` that several rows have."""

    values: int
    rows: int
    most_frequent: list[tuple[str, int]]


def _shared_values(catalog: Catalog, by: list[str]) -> SharedValues | None:
    if not by:
        return None
    spellings: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for _, value in read_products(catalog.rows, by):
        if product := product_of(value):
            spellings.setdefault(product, value)
            counts[product] += 1
    shared = Counter({product: rows for product, rows in counts.items() if rows > 1})
    frequent = [(spellings[value], rows) for value, rows in shared.most_common(SHOWN_VALUES)]
    return SharedValues(len(shared), shared.total(), frequent)


@dataclass(frozen=True)
class GroupsOfProducts:
    """Groups of rows that an image or a description holds together.

    Attributes:
        groups, rows: how many there are.
        largest: (rows of the group, the first of them) of the largest groups.
    """

    groups: int
    rows: int
    largest: list[tuple[int, list[RowCard]]]


def _groups_of_products(rows: RowCards, by: list[str]) -> GroupsOfProducts:
    """Groups of several products, or of none: no field can have joined their rows."""
    products = dict(read_products(rows.catalog.rows, by))
    members: dict[str, list[tuple[str, int]]] = defaultdict(list)
    lines = _numbered(rows.ledger, "decision", ROW_ID, "group")
    for position, (decision, row_id, group) in lines:
        if Decision(decision).in_catalog:
            members[group].append((product_of(products[row_id]), position))
    joined = [
        [position for _, position in group]
        for group in members.values()
        if len(group) > 1 and {product for product, _ in group} != {group[0][0] or None}
    ]
    largest = sorted(joined, key=len, reverse=True)[:SHOWN_GROUPS]
    return GroupsOfProducts(
        groups=len(joined),
        rows=sum(map(len, joined)),
        largest=[(len(group), rows.cards(group[:SHOWN_IN_GROUP])) for group in largest],
    )


def _common_values(rows: RowCards) -> list[tuple[SharedValue, RowCard]]:
    """What too many products share to be tied by it, each with the first row that has it."""
    common = [value for value in rows.ledger.shared if not value.ties][:SHOWN_GROUPS]
    cards = rows.cards(rows.positions([value.row_id for value in common]))
    return list(zip(common, cards, strict=True))


def _held_out_sharing(rows: RowCards) -> list[RowCard]:
    """The first held-out rows that share an image or a description with training rows."""
    lines = _numbered(rows.ledger, "shared_with_train")
    positions = (position for position, (shared,) in lines if shared)
    return rows.cards(list(islice(positions, SHOWN_EXTREMES)))


@dataclass(frozen=True)
class SideCount:
    """Rows on one side of the split, and how many of them were there before."""

    name: str
    rows: int
    share: float
    carried: int


def _sides(ledger: RowLedger) -> list[SideCount]:
    lines = list(read_columns(ledger.lines, "side", "carried"))
    rows = Counter(side for side, _ in lines if side)
    carried = Counter(side for side, is_carried in lines if is_carried)
    total = rows.total() or 1
    names = {Side.TRAIN: "Training", Side.HELD_OUT: "Held out"}
    return [SideCount(n, rows[s], rows[s] / total, carried[s]) for s, n in names.items()]
