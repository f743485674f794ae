"""What changed against the previous catalog, row by row; `drift` compares them as a whole."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from vlmtune.artifact import Artifact
from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.catalog_reader import CatalogReader, product_of, read_columns, read_products
from vlmtune.catalog.drift import Drift, compare_properties
from vlmtune.catalog.ledger import Decision, RowLedger
from vlmtune.config.data import PICTURE, DataConfig
from vlmtune.pages import shorten

EXAMPLES, LONGEST_TEXT = 12, 2000  # rows; characters


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
        now_duplicate: how many of `removed` are still in the source, as exact copies.
        edited_fields: field -> number of edited rows in which it differs.
        examples: the first edited rows.
        added_labels, removed_labels: labels of the first of these rows.
    """

    same: int
    added: list[str]
    removed: list[str]
    edited: list[str]
    now_quarantined: int
    now_duplicate: int
    edited_fields: dict[str, int]
    examples: list[EditedRow]
    added_labels: list[str]
    removed_labels: list[str]


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
    by = [name for name in data.held_out.fields if name in fields]
    return CatalogChanges(
        old_version=old.version,
        new_version=new.version,
        rows=_compare_rows(before, now, fields, by),
        drift=compare_properties(before, now, [name for name in fields if name not in by]),
    )


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
    before: CatalogReader, now: CatalogReader, fields: list[str], by: list[str]
) -> RowChanges:
    old_hashes = dict(before.lines(ROW_ID, "text_hash"))
    new_hashes = dict(now.lines(ROW_ID, "text_hash"))
    gone = _recognisable(before, old_hashes.keys() - new_hashes.keys(), by)
    come = _recognisable(now, new_hashes.keys() - old_hashes.keys(), by)
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
        now_quarantined=len(set(removed) & _decided(now, Decision.QUARANTINED)),
        now_duplicate=len(set(removed) & _decided(now, Decision.DUPLICATE)),
        edited_fields=dict(edited_fields.most_common()),
        examples=_with_labels(examples, now),
        added_labels=list(_labels(now, added[:EXAMPLES]).values()),
        removed_labels=list(_labels(before, removed[:EXAMPLES]).values()),
    )


def _recognisable(side: CatalogReader, row_ids: set[str], by: list[str]) -> dict[str, _Row]:
    """Row id -> row, of these rows, in the catalog's order."""
    products = {
        row_id: product_of(product)
        for row_id, product in read_products(side.catalog.rows, by)
        if row_id in row_ids
    }
    return {
        row_id: _Row(
            row_id,
            products.get(row_id, ""),
            tuple(picture["sha256"] for picture in pictures if picture["sha256"]),
        )
        for row_id, pictures in side.lines(ROW_ID, "pictures")
        if row_id in row_ids
    }


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


def _decided(side: CatalogReader, decision: Decision) -> set[str]:
    decisions = read_columns(side.ledger.lines, "decision", ROW_ID)
    return {row_id for each, row_id in decisions if each == decision}


def _labels(side: CatalogReader, row_ids: list[str]) -> dict[str, str]:
    """Row id -> label, in the order of the ids."""
    wanted = set(row_ids)
    found = {row_id: label for row_id, label in side.lines(ROW_ID, "label") if row_id in wanted}
    return {row_id: found[row_id] for row_id in row_ids}


def _with_labels(edits: list[EditedRow], side: CatalogReader) -> list[EditedRow]:
    labels = _labels(side, [edit.row_id for edit in edits])
    return [replace(edit, label=labels[edit.row_id]) for edit in edits]
