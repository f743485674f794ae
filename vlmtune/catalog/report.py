"""Two web pages about a catalog: the data report for a merchandiser, and the ledger row by row."""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.changes import (
    CATEGORY,
    EFFECT,
    LENGTH,
    MIN_ROWS,
    SIGNIFICANCE,
    WORDS,
    CatalogChanges,
    CatalogReader,
    Drift,
    few_values,
    product_of,
    read_columns,
)
from vlmtune.catalog.ledger import Decision, RowLedger, Side
from vlmtune.config.data import DESCRIPTION, DataConfig
from vlmtune.pages import data_uri, page_environment
from vlmtune.pages.histogram import HistogramPlot, histogram, plot_histogram

TEMPLATES = Path(__file__).resolve().parent / "templates"
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 96, 60  # pixels; 1 to 95
QUARANTINE_TABLE = "metadata.jsonl"

# What keeps the data report small enough to mail.
SAMPLES, CATEGORIES_SAMPLED = 24, 8
SHOWN_QUARANTINED, SHOWN_EXTREMES = 24, 8
SHOWN_VALUES, SHOWN_GROUPS, SHOWN_IN_GROUP = 20, 12, 6
SHOWN_EXAMPLES, SHOWN_PICTURES = 3, 3  # of a reason; of a row

# Reason code -> (what it means, what to do about it).
MEANINGS = {
    "missing_text": ("a text is missing", "fill in the field"),
    "text_too_short": ("a text is too short", "write more, or lower min_length"),
    "text_too_long": ("a text is too long", "shorten it, or raise max_length"),
    "not_allowed": ("a value is not on the list", "correct the value, or add it to allowed"),
    "banned_phrase": ("a text has a banned phrase", "reword the text"),
    "pattern_not_found": ("a text lacks the pattern asked for", "correct the text or the pattern"),
    "wrong_language": ("a text is in another language", "translate it, or add the language"),
    "picture_too_small": ("a picture is too small", "give a larger picture, or lower min_side"),
    "too_many_pictures": ("too many pictures", "remove some, or raise max_count"),
    "missing_picture": ("no picture is named", "name a picture"),
    "picture_outside_folder": (
        "a picture lies outside the catalog's folder",
        "move it into the folder",
    ),
    "picture_not_found": ("a picture file is not there", "add the file, or correct its name"),
    "picture_unreadable": ("a picture cannot be read", "save the picture again"),
    "picture_too_large": ("a picture has too many pixels or bytes", "give a smaller picture"),
    "download_failed": ("a picture could not be downloaded", "check the address, then run again"),
    "ragged_row": (
        "the row has more or fewer cells than the header",
        "check separators and quotes of the row",
    ),
    "broken_json": ("the line is not valid JSON", "correct the line"),
    "control_token": (
        "a text has a control word of the model",
        "remove the word, as <|im_start|>, from the text",
    ),
    "too_many_tokens": (
        "the row is too long for the model",
        "shorten it, use a smaller picture, or raise max_tokens",
    ),
    "processor_refused": (
        "the model's processor refused the row",
        "see the message; often the picture's shape is the cause",
    ),
    "split_conflict": (
        "the row would join training and held-out products",
        "give the row a picture or a name of its own",
    ),
    "html_removed": ("HTML was removed from a text", ""),
    "entities_decoded": ("HTML entities became characters", ""),
    "unicode_normalised": ("characters were brought to one form", ""),
    "control_characters_removed": ("invisible control characters were removed", ""),
    "picture_rotated": ("a picture was turned upright", ""),
    "alpha_flattened": ("a transparent picture was laid on the background", ""),
    "colours_converted": ("a picture's colours were converted to RGB", ""),
    "first_frame_taken": ("of an animation the first frame was taken", ""),
}


def reason_meaning(code: str) -> str:
    """A reason code in plain words."""
    return MEANINGS.get(code, (code.replace("_", " "), ""))[0]


def _mend(code: str) -> str:
    return MEANINGS.get(code, ("", "see the message"))[1]


def render_data_report(
    catalog: Catalog,
    ledger: RowLedger,
    data: DataConfig,
    changes: CatalogChanges | None,
    title: str,
) -> str:
    """Write the state of a catalog as one self-contained HTML page.

    Args:
        catalog: the rows that can be trained on.
        ledger: what became of every row of the source.
        data: what the fields mean and what is asked of them.
        changes: against the previous catalog; None for a first one.
        title: the page's heading.

    Returns:
        HTML in which every text of the catalog is escaped; about 120 pictures at most.
    """
    rows = _Rows(catalog, ledger)
    category = _category_field(catalog, data)
    page = page_environment(TEMPLATES).get_template("data_report.html.j2")
    return page.render(
        title=title,
        facts=_facts(catalog, ledger),
        state=_state(ledger, data),
        reasons=_reasons(ledger),
        quarantined=rows.cards(_first_quarantined(ledger)),
        category=category,
        categories=_bars(Counter(rows.reader.texts(category))) if category else [],
        samples=_samples(rows, category),
        languages=_bars(rows.reader.languages()),
        histograms=_histograms(rows.reader),
        sides=_sides(ledger),
        by=data.held_out.by,
        shared=_shared_values(catalog, data.held_out.by),
        groups=_picture_groups(rows, data.held_out.by),
        longest=rows.cards(_longest(ledger)),
        smallest=rows.cards(_smallest(ledger)),
        changes=changes,
        drift=[_drift_view(drift) for drift in changes.drift] if changes else [],
        significance=SIGNIFICANCE,
        threshold=EFFECT,
        min_rows=MIN_ROWS,
    )


def render_ledger_page(
    catalog: Catalog, ledger: RowLedger, title: str, rows_shown: int = 500
) -> str:
    """Write the ledger as one self-contained HTML page: quarantined rows, repaired, then kept.

    Args:
        catalog: the rows that can be trained on, for their pictures.
        ledger: what became of every row of the source.
        title: the page's heading.
        rows_shown: at most so many rows; the page says how many it leaves out.
    """
    ranks = {Decision.QUARANTINED: 0, Decision.REPAIRED: 1, Decision.KEPT: 2}
    decisions = read_columns(ledger.lines, "decision", "line")
    order = [(ranks[Decision(decision)], line) for decision, line in decisions]
    positions = heapq.nsmallest(rows_shown, range(len(order)), key=order.__getitem__)
    page = page_environment(TEMPLATES).get_template("ledger.html.j2")
    cards = _Rows(catalog, ledger).cards(positions)
    return page.render(title=title, counts=ledger.counts, rows=cards)


# --- Rows with their pictures ----------------------------------------------------------------


@dataclass(frozen=True)
class ShownReason:
    """A reason in plain words, and what to do about it."""

    meaning: str
    message: str
    field: str
    mend: str


@dataclass(frozen=True)
class RowCard:
    """A row of the ledger with thumbnails as data URIs; None for an unreadable picture."""

    line: dict[str, Any]
    reasons: list[ShownReason]
    thumbnails: list[str | None]


class _Rows:
    """Looks up rows and their pictures by their place in the ledger's table, from 0."""

    def __init__(self, catalog: Catalog, ledger: RowLedger) -> None:
        self.catalog, self.ledger = catalog, ledger
        self.reader = CatalogReader(catalog, ledger)
        self.numbers = {row_id: n for n, row_id in enumerate(self.reader.texts(ROW_ID))}
        self._positions = {row_id: n for n, row_id in enumerate(ledger.lines[ROW_ID])}

    def positions(self, row_ids: list[str]) -> list[int]:
        """Of rows of the catalog."""
        return [self._positions[row_id] for row_id in row_ids]

    def cards(self, positions: Sequence[int]) -> list[RowCard]:
        lines = list(self.ledger.lines.select(positions))
        quarantined = {line["line"] for line in lines if _is_quarantined(line)}
        files = _quarantined_files(self.ledger.quarantine, quarantined)
        return [self._card(line, files.get(line["line"], [])) for line in lines]

    def _card(self, line: dict[str, Any], files: list[Path]) -> RowCard:
        if _is_quarantined(line):
            pictures = [file.read_bytes() for file in files[:SHOWN_PICTURES]]
        else:
            pictures = self.catalog.pictures(self.numbers[line["row_id"]])[:SHOWN_PICTURES]
        return RowCard(
            line=line,
            reasons=[
                ShownReason(
                    reason_meaning(reason["code"]),
                    reason["message"],
                    reason["field"],
                    _mend(reason["code"]),
                )
                for reason in line["reasons"]
            ],
            thumbnails=[data_uri(each, THUMBNAIL_SIDE, THUMBNAIL_QUALITY) for each in pictures],
        )


def _is_quarantined(line: dict[str, Any]) -> bool:
    return line["decision"] == Decision.QUARANTINED


def _quarantined_files(quarantine: Path, lines: set[int]) -> dict[int, list[Path]]:
    """Line -> picture files, of these lines; a path that leads out of the folder is left out."""
    table = quarantine / QUARANTINE_TABLE
    found: dict[int, list[Path]] = {}
    if not lines or not table.is_file():
        return found
    with table.open(encoding="utf-8", errors="surrogatepass") as file:
        for text in file:
            row = json.loads(text)
            if row["_line"] in lines:
                paths = [(quarantine / name).resolve() for name in row["_pictures"]]
                found[row["_line"]] = [path for path in paths if _lies_in(path, quarantine)]
    return found


def _lies_in(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder.resolve()) and path.is_file()


# --- Facts of the data report ----------------------------------------------------------------


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
    examples: list[str]


def _reasons(ledger: RowLedger) -> list[ReasonRow]:
    rows = {code: ReasonRow(reason_meaning(code), 0, 0, []) for code in ledger.reason_counts}
    for decision, reasons, label in read_columns(ledger.lines, "decision", "reasons", "label"):
        for code in {reason["code"] for reason in reasons}:
            row = rows[code]
            row.quarantined += decision == Decision.QUARANTINED
            row.repaired += decision != Decision.QUARANTINED
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
    fields = [name for name in data.texts if name not in (DESCRIPTION, data.held_out.by)]
    return next((name for name in fields if few_values(catalog, name)), None)


@dataclass(frozen=True)
class Sample:
    """Some rows of one category."""

    category: str
    rows: list[RowCard]


def _samples(rows: _Rows, category: str | None) -> list[Sample]:
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
        if tokens and decision != Decision.QUARANTINED
    )
    return [-position for _, position in heapq.nlargest(SHOWN_EXTREMES, known)]


def _smallest(ledger: RowLedger) -> list[int]:
    """Positions of the rows whose picture has the shortest side."""
    known = (
        (min(min(each["width"], each["height"]) for each in pictures), position)
        for position, (decision, pictures) in _numbered(ledger, "decision", "pictures")
        if decision != Decision.QUARANTINED and pictures
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


def _shared_values(catalog: Catalog, by: str | None) -> SharedValues | None:
    if by is None:
        return None
    spellings: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for (value,) in read_columns(catalog.rows, by):
        if product := product_of(value):
            spellings.setdefault(product, value)
            counts[product] += 1
    shared = Counter({product: rows for product, rows in counts.items() if rows > 1})
    frequent = [(spellings[value], rows) for value, rows in shared.most_common(SHOWN_VALUES)]
    return SharedValues(len(shared), shared.total(), frequent)


@dataclass(frozen=True)
class PictureGroups:
    """Groups of rows that the same or a similar picture holds together.

    Attributes:
        groups, rows: how many there are.
        largest: (rows of the group, the first of them) of the largest groups.
    """

    groups: int
    rows: int
    largest: list[tuple[int, list[RowCard]]]


def _picture_groups(rows: _Rows, by: str | None) -> PictureGroups:
    """Groups of several products, or of none: only pictures can have joined their rows."""
    products = (
        dict(read_columns(rows.catalog.rows, ROW_ID, by)) if by else dict.fromkeys(rows.numbers)
    )
    members: dict[str, list[tuple[str, int]]] = defaultdict(list)
    lines = _numbered(rows.ledger, "decision", ROW_ID, "group")
    for position, (decision, row_id, group) in lines:
        if decision != Decision.QUARANTINED:
            members[group].append((product_of(products[row_id]), position))
    through_pictures = [
        [position for _, position in group]
        for group in members.values()
        if len(group) > 1 and {product for product, _ in group} != {group[0][0] or None}
    ]
    largest = sorted(through_pictures, key=len, reverse=True)[:SHOWN_GROUPS]
    return PictureGroups(
        groups=len(through_pictures),
        rows=sum(map(len, through_pictures)),
        largest=[(len(group), rows.cards(group[:SHOWN_IN_GROUP])) for group in largest],
    )


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


# --- Drift as it is drawn --------------------------------------------------------------------


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


def _drift_view(drift: Drift) -> DriftView:
    plot = plot_histogram(drift.histogram) if drift.histogram else None
    old_total, new_total = drift.old_total or 1, drift.new_total or 1
    shares = [(each.value, each.old / old_total, each.new / new_total) for each in drift.counts]
    longest = max((max(old, new) for _, old, new in shares), default=0.0) or 1.0
    pairs = [
        SharePair(value, old, new, round(100 * old / longest, 1), round(100 * new / longest, 1))
        for value, old, new in shares
    ]
    return DriftView(drift, plot, pairs)
