"""What changed against the previous catalog: row by row, and as a whole (drift).

The statistics are SciPy's. Evidently has the same tests, but brings dozens of packages and a
dashboard of its own, and hides which statistic led to a verdict.

With many rows a test calls every difference significant, and with few rows every difference is
large. So something has drifted only if both hold: its p-value, after Holm's correction for the
number of tests, is below `SIGNIFICANCE`, and its effect is above `EFFECT`.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from vlmtune.artifact import Artifact
from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.ledger import Decision, RowLedger
from vlmtune.config.data import DESCRIPTION, PICTURE, DataConfig
from vlmtune.pages import shorten
from vlmtune.pages.histogram import Histogram, histogram

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset

SIGNIFICANCE = 0.01
EFFECT = 0.1  # what Cohen (1988) calls a small effect of w, which is Cramér's V for two rows
MIN_ROWS = 30  # of each catalog; with fewer nothing is tested
MIN_EXPECTED = 5  # rows of a value; rarer values are pooled (Cochran's rule for chi-squared)
BATCH = 1000
CATEGORY = "category"
UNSURE = "unsure"  # which language it is
LENGTH, WORDS = "description length", "words of the descriptions"
FEW_VALUES = 50  # a field with no more may be a category
EXAMPLES, SHOWN_VALUES, LONGEST_TEXT = 12, 20, 2000
FREQUENT_WORDS, MOVED_WORDS, VOCABULARY = 200, 8, 300_000
SAMPLED_ROWS, SHUFFLES = 2000, 1999  # of each catalog, for the test of the words


class Verdict(StrEnum):
    """What a comparison says."""

    STEADY = "steady"
    DRIFTED = "drifted"
    TOO_FEW = "too few rows"


@dataclass(frozen=True)
class EditedRow:
    """A row that was there before and differs now.

    Attributes:
        row_id, old_row_id: now and before; they differ if the picture or a field has changed.
        label: what to call the row in front of people.
        changed: the fields that differ; `image` if the pictures do.
        before, after: changed field -> its text, cut to 2,000 characters.
    """

    row_id: str
    old_row_id: str
    label: str
    changed: list[str]
    before: dict[str, str]
    after: dict[str, str]


@dataclass(frozen=True)
class RowChanges:
    """Which rows came, went and changed, among those that can be trained on.

    Attributes:
        same: number of rows that are as before.
        added, edited: row ids in the new catalog.
        removed: row ids in the old catalog.
        now_quarantined: how many of `removed` are still in the source, but in quarantine.
        edited_fields: field -> number of edited rows in which it differs.
        examples: the first edited rows.
        added_labels, removed_labels: labels of the first of these rows.
    """

    same: int
    added: list[str]
    removed: list[str]
    edited: list[str]
    now_quarantined: int
    edited_fields: dict[str, int]
    examples: list[EditedRow]
    added_labels: list[str]
    removed_labels: list[str]


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


@dataclass(frozen=True)
class CatalogChanges(Artifact):
    """A catalog against its predecessor.

    Attributes:
        old_version, new_version: of the two catalogs.
        rows: which rows came, went and changed.
        drift: each property that was compared.
    """

    old_version: str
    new_version: str
    rows: RowChanges
    drift: list[Drift]

    def to_json(self) -> dict[str, Any]:
        """All of it as values that JSON has."""
        return asdict(self)


def compare_catalogs(
    new: Catalog, new_ledger: RowLedger, old: Catalog, old_ledger: RowLedger, data: DataConfig
) -> CatalogChanges:
    """Find what changed between two catalogs; pictures are compared by the ledgers' facts.

    Args:
        new, new_ledger: the catalog of this run.
        old, old_ledger: the one it is compared with.
        data: names the fields; a field that one of the catalogs lacks is not compared.
    """
    before, now = CatalogReader(old, old_ledger), CatalogReader(new, new_ledger)
    columns = set(old.rows.column_names) & set(new.rows.column_names)
    fields = [name for name in data.texts if name in columns]
    product = data.held_out.by if data.held_out.by in fields else None
    drift = [
        *_compare_categories(before, now, [name for name in fields if name != product]),
        _compare_numbers(LENGTH, before.lengths(), now.lengths()),
        _compare_numbers("longest side of the pictures", before.sides(), now.sides()),
        _compare_words(before, now),
        _compare_counts("language", before.languages(), now.languages()),
    ]
    return CatalogChanges(
        old_version=old.version,
        new_version=new.version,
        rows=_compare_rows(before, now, fields, product),
        drift=_judge(drift),
    )


@dataclass(frozen=True)
class CatalogReader:
    """A catalog with its ledger, read in small batches and without its pictures."""

    catalog: Catalog
    ledger: RowLedger

    def lines(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Columns of the ledger, of the rows that are in the catalog."""
        for decision, *values in read_columns(self.ledger.lines, "decision", *columns):
            if decision != Decision.QUARANTINED:
                yield tuple(values)

    def texts(self, column: str) -> Iterator[str]:
        """One column of the catalog."""
        return (text or "" for (text,) in read_columns(self.catalog.rows, column))

    def lengths(self) -> list[int]:
        """Of the descriptions, in characters."""
        return [characters for (characters,) in self.lines("characters")]

    def sides(self) -> list[int]:
        """The longest side of each picture, in pixels."""
        pictures = (picture for (pictures,) in self.lines("pictures") for picture in pictures)
        return [max(each["width"], each["height"]) for each in pictures if each["width"]]

    def languages(self) -> Counter[str]:
        """Language of the description -> rows."""
        return Counter(language or UNSURE for (language,) in self.lines("language"))


def read_columns(rows: "Dataset", *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of some columns, row by row, with little of the table in memory at a time."""
    for batch in rows.select_columns(list(columns)).iter(batch_size=BATCH):
        yield from zip(*(batch[column] for column in columns), strict=True)


# --- Rows ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """What a row is recognised by when its id has changed."""

    row_id: str
    product: str
    pictures: tuple[str, ...]


def _products_and_pictures(row: _Row) -> list[Any]:
    return [(row.product, picture) for picture in row.pictures if row.product]


def _product(row: _Row) -> list[Any]:
    return [row.product] if row.product else []


def _pictures(row: _Row) -> list[Any]:
    return list(row.pictures)


def _compare_rows(
    before: CatalogReader, now: CatalogReader, fields: list[str], product: str | None
) -> RowChanges:
    old_hashes = dict(before.lines(ROW_ID, "text_hash"))
    new_hashes = dict(now.lines(ROW_ID, "text_hash"))
    gone = _recognisable(before, old_hashes.keys() - new_hashes.keys(), product)
    come = _recognisable(now, new_hashes.keys() - old_hashes.keys(), product)
    partners = _find_partners(gone, come)
    new_pictures = {
        new for new, old in partners.items() if come[new].pictures != gone[old].pictures
    }
    reworded = {
        row_id: row_id
        for row_id, text_hash in new_hashes.items()
        if old_hashes.get(row_id, text_hash) != text_hash
    }
    edited: list[str] = []
    edited_fields: Counter[str] = Counter()
    examples: list[EditedRow] = []
    for edit in _edits(before, now, fields, reworded | partners, new_pictures):
        edited.append(edit.row_id)
        edited_fields.update(edit.changed)
        examples += [edit] if len(examples) < EXAMPLES else []
    added = [row_id for row_id in come if row_id not in partners]
    found_again = set(partners.values())
    removed = [row_id for row_id in gone if row_id not in found_again]
    return RowChanges(
        same=len(new_hashes) - len(added) - len(edited),
        added=added,
        removed=removed,
        edited=edited,
        now_quarantined=len(set(removed) & _quarantined(now)),
        edited_fields=dict(edited_fields.most_common()),
        examples=_with_labels(examples, now),
        added_labels=list(_labels(now, added[:EXAMPLES]).values()),
        removed_labels=list(_labels(before, removed[:EXAMPLES]).values()),
    )


def _recognisable(side: CatalogReader, row_ids: set[str], product: str | None) -> dict[str, _Row]:
    """Row id -> row, of these rows, in the catalog's order."""
    products = {}
    if product:
        named = read_columns(side.catalog.rows, ROW_ID, product)
        products = {row_id: product_of(name) for row_id, name in named if row_id in row_ids}
    return {
        row_id: _Row(
            row_id,
            products.get(row_id, ""),
            tuple(picture["sha256"] for picture in pictures if picture["sha256"]),
        )
        for row_id, pictures in side.lines(ROW_ID, "pictures")
        if row_id in row_ids
    }


def product_of(text: str | None) -> str:
    """A value of `held_out.by` as it is compared: in any case and spacing."""
    return " ".join((text or "").casefold().split())


def _find_partners(gone: dict[str, _Row], come: dict[str, _Row]) -> dict[str, str]:
    """New row id -> old row id of the same product; rows that share most find each other first."""
    partners: dict[str, str] = {}
    for keys_of in (_products_and_pictures, _product, _pictures):
        _match(gone, come, keys_of, partners)
    return partners


def _match(
    gone: dict[str, _Row],
    come: dict[str, _Row],
    keys_of: Callable[[_Row], list[Any]],
    partners: dict[str, str],
) -> None:
    """Add to the partners those that share a key; each row has one partner at most."""
    taken = set(partners.values())
    waiting: dict[Any, list[str]] = defaultdict(list)
    for row in reversed(gone.values()):
        for key in keys_of(row):
            waiting[key].append(row.row_id)
    for row in come.values():
        for key in keys_of(row) if row.row_id not in partners else []:
            while waiting[key] and waiting[key][-1] in taken:
                waiting[key].pop()
            if waiting[key]:
                partners[row.row_id] = waiting[key].pop()
                taken.add(partners[row.row_id])
                break


def _edits(
    before: CatalogReader,
    now: CatalogReader,
    fields: list[str],
    partners: dict[str, str],
    new_pictures: set[str],
) -> Iterator[EditedRow]:
    """The pairs that really differ, without labels."""
    old_texts = _texts_of(before, list(partners.values()), fields)
    new_texts = _texts_of(now, list(partners), fields)
    for (new, old), was, is_now in zip(partners.items(), old_texts, new_texts, strict=True):
        differing = [name for name in fields if was[name] != is_now[name]]
        changed = [PICTURE, *differing] if new in new_pictures else differing
        if changed:
            yield EditedRow(
                row_id=new,
                old_row_id=old,
                label="",
                changed=changed,
                before={name: shorten(was[name], LONGEST_TEXT) for name in differing},
                after={name: shorten(is_now[name], LONGEST_TEXT) for name in differing},
            )


def _texts_of(
    side: CatalogReader, row_ids: list[str], fields: list[str]
) -> Iterator[dict[str, str]]:
    numbers = {row_id: number for number, row_id in enumerate(side.texts(ROW_ID))}
    rows = side.catalog.rows.select_columns(fields).select([numbers[each] for each in row_ids])
    for values in read_columns(rows, *fields):
        yield {name: value or "" for name, value in zip(fields, values, strict=True)}


def _quarantined(side: CatalogReader) -> set[str]:
    decisions = read_columns(side.ledger.lines, "decision", ROW_ID)
    return {row_id for decision, row_id in decisions if decision == Decision.QUARANTINED}


def _labels(side: CatalogReader, row_ids: list[str]) -> dict[str, str]:
    """Row id -> label, in the order of the ids."""
    wanted = set(row_ids)
    found = {row_id: label for row_id, label in side.lines(ROW_ID, "label") if row_id in wanted}
    return {row_id: found[row_id] for row_id in row_ids}


def _with_labels(edits: list[EditedRow], side: CatalogReader) -> list[EditedRow]:
    labels = _labels(side, [edit.row_id for edit in edits])
    return [replace(edit, label=labels[edit.row_id]) for edit in edits]


# --- Drift -----------------------------------------------------------------------------------

Measured = tuple[float, float, float]  # statistic, p-value, effect


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
