"""Which rows are held out: whole groups of them, each on one side for as long as it exists.

Rows of one product, with the same or nearly the same image, or with the same description form a
group. The side of a new group is decided by a hash of its key, so that it depends neither on the
row order nor on other groups; the side of a known one is carried over from the ledger of an
earlier run.
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vlmtune.catalog.descriptions import DescriptionKey, Descriptions
from vlmtune.catalog.duplicates import Looks, PictureKey, one_of_each
from vlmtune.catalog.ledger import SharedValue, Side
from vlmtune.catalog.likeness import Likeness
from vlmtune.config.data import DESCRIPTION, PICTURE, DuplicatesConfig, HeldOutConfig

LONGEST_GROUP = 60  # characters
SHOWN_VALUES = 12  # that tie rows, and as many of each kind that do not


class Tie(StrEnum):
    """Why two rows belong to one group."""

    SAME_ROW = "same_row"  # as in the previous ledger
    SAME_PRODUCT = "same_product"
    SAME_PICTURE = "same_picture"
    SIMILAR_PICTURE = "similar_picture"
    SAME_DESCRIPTION = "same_description"
    SIMILAR_DESCRIPTION = "similar_description"

    @property
    def words(self) -> str:
        """For people."""
        return self.value.replace("_", " ")


@dataclass(frozen=True, slots=True)
class GroupedRow:
    """What grouping needs to know of a row.

    Attributes:
        row_id: of the row, different from that of any other row of the same ledger.
        product: value of the field `held_out.by`, casefolded and its white space collapsed; rows
            of equal value are one product. Empty for none.
        pictures: of the row; all of them can be decoded.
        side: in the previous ledger, for its rows; is not read for the rows of today.
        product_key: value of the field `held_out.by` as the catalog has it.
        description: of the row; None for none.
        name: digest of its name, which tells products apart where `product` is empty.
        content: digest of images, prompt and description: rows of equal content are copies.
            Empty for a row that is no copy of any.
        shared_with_train: in the previous ledger, for its rows.
    """

    row_id: str
    product: str
    pictures: tuple[PictureKey, ...]
    side: str = ""
    product_key: str = ""
    description: DescriptionKey | None = None
    name: bytes = b""
    content: bytes = b""
    shared_with_train: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a row belongs.

    Attributes:
        group: key of its group; empty if the row is to be quarantined or is a copy.
        side: train or held_out; empty likewise.
        carried: whether the side comes from the previous ledger, the row's own or its group's.
        conflict: why the row fits on neither side and is to be quarantined; else empty.
        copy_of: id of the row that this one is an exact copy of; else empty.
        shared_with_train: as in `LedgerLine`.
    """

    group: str
    side: str
    carried: bool
    conflict: str = ""
    copy_of: str = ""
    shared_with_train: str = ""


@dataclass(frozen=True)
class Split:
    """Where all rows belong.

    Attributes:
        assignments: one a row, in order.
        shared: what most rows have in common, first what ties them, then what does not. The
            label of an image is its sha256, that of a description is empty.
    """

    assignments: list[Assignment]
    shared: list[SharedValue]


def is_held_out(key: str, fraction: float) -> bool:
    """Whether the group with this key is held out.

    The first 8 bytes of the key's SHA-256, read as a number in [0, 1), are compared with the
    fraction: a row keeps its side whatever other rows come and go.
    """
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return position < fraction


def split_rows(
    rows: Sequence[GroupedRow],
    previous: Sequence[GroupedRow],
    held_out: HeldOutConfig,
    duplicates: DuplicatesConfig,
) -> Split:
    """Put rows into groups and groups on sides, so that no tie leads from side to side.

    Rows of the previous ledger come first, each with its side; then the rows that it knows; then
    the new ones in the catalog's order, which join the groups they are tied to. A new row that
    would join a train group to a held-out one belongs to neither and is in conflict.

    A row of the previous ledger stays on its side, whatever the hash or the fraction says now.
    The one exception: where ties that were not there before (a changed `held_out.by`, larger
    distances, an edited description) join known rows of both sides, all of them are trained on.
    Held-out rows would leak there, while training on more rows makes no later evaluation
    dishonest.

    An image or a description that more than `max_sharing_products` products of today have, itself
    or one near it, ties no rows. Products are told apart by `held_out.by`, else by name; rows with
    neither are a product each. What a held-out row shared with train rows in the previous ledger
    ties none either, however few products have it now: both rows keep their side.

    A new group's side is that of the smallest product value of its rows, or of the smallest row
    id where no row has a product. Ties chain: a group may hold rows that are not tied directly.

    Of rows with equal content one has a side, the others are its copies: the first that the
    previous ledger knows, else the first. A copy still ties the rows that it is tied to.

    Args:
        rows: of the catalog today, in its order.
        previous: rows kept by the previous ledger, with their sides; empty for a first run.
        held_out: the share of the groups to hold out.
        duplicates: when rows count as sharing an image or a description.

    Returns:
        An assignment for each row, and what rows share. One of the sides may be empty.
    """
    first = len(previous)
    placement = _Placement([*previous, *rows], first, duplicates)
    for number, row in enumerate(previous):
        placement.place(number, placement.ties(number), row.side)
    sides_before = {row.row_id: row.side for row in previous}
    conflicts = _place_today(placement, first, sides_before)
    numbers = range(first, len(placement.rows))
    keys = placement.keys(number for number in numbers if number not in conflicts)
    copies = _find_copies(placement.rows, numbers, conflicts, sides_before)
    sides = {
        number: placement.side(number)
        or _side_by_hash(keys[placement.groups[number]], held_out.fraction)
        for number in numbers
        if number not in conflicts and number not in copies
    }
    shared = placement.shared_with_train(sides)

    def assign(number: int) -> Assignment:
        if number in copies:
            return Assignment("", "", False, copy_of=placement.rows[copies[number]].row_id)
        if number in conflicts:
            return Assignment("", "", False, conflicts[number])
        known = placement.side(number)
        before = sides_before.get(placement.rows[number].row_id)
        carried = bool(known) and before in (None, known)
        group = _shortened(keys[placement.groups[number]])
        return Assignment(
            group, sides[number], carried, shared_with_train=" ".join(shared.get(number, []))
        )

    return Split(
        [assign(number) for number in numbers], _most_shared(placement.shared_values(sides))
    )


class _Groups:
    """Rows united into groups, in a few bytes a row (scipy's DisjointSet takes hundreds)."""

    def __init__(self, rows: int) -> None:
        self._parents = array("i", range(rows))

    def __getitem__(self, number: int) -> int:
        """A number that all rows of the group have in common; merging may change it."""
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]  # keeps the way short
            number = self._parents[number]
        return number

    def merge(self, one: int, other: int) -> None:
        """Make the groups of two rows one."""
        first, second = sorted((self[one], self[other]))
        self._parents[second] = first


class _Placement:
    """The rows that have their place: united into groups that may know their side.

    Args:
        rows: of the previous ledger, then of today.
        first: number of the first row of today.
    """

    def __init__(
        self, rows: Sequence[GroupedRow], first: int, duplicates: DuplicatesConfig
    ) -> None:
        import numpy

        self.rows = rows
        self.first = first
        self.groups = _Groups(len(rows))
        self._sides: dict[int, str] = {}  # group -> side
        # What rows share -> the first row that has it.
        self._firsts: dict[Tie, dict[object, int]] = {tie: {} for tie in Tie}
        self._labels = numpy.arange(len(rows))  # rows of equal label are in one group
        names: dict[object, int] = {}
        self._products: list[int] = []  # of each row
        for row in rows:
            name = row.product or row.name or row.row_id
            self._products.append(names.setdefault(name, len(names)))
        self.kinds = {
            PICTURE: _likeness_of_pictures(rows, duplicates),
            DESCRIPTION: _likeness_of_descriptions(rows, duplicates),
        }
        limit = duplicates.max_sharing_products
        self._counts, self._shown_by = {}, {}
        for kind, likeness in self.kinds.items():
            self._counts[kind] = likeness.untie_common(self._products, first, limit)
            likeness.untie_across(*self._on_both_sides(kind))
            # number -> the first placed row that has it
            self._shown_by[kind] = numpy.full(len(likeness.ties), -1)

    def side(self, number: int) -> str:
        """Side of the group of a placed row; empty if it has none yet."""
        return self._sides[self.groups[number]]

    def ties(self, number: int) -> list[tuple[Tie, int]]:
        """Ties of a row to placed rows: at least one to each group that it is tied to."""
        found = []
        for tie, key in self._keys(number):
            if key in self._firsts[tie]:
                found.append((tie, self._firsts[tie][key]))
        similar = {PICTURE: Tie.SIMILAR_PICTURE, DESCRIPTION: Tie.SIMILAR_DESCRIPTION}
        for kind, tie in similar.items():
            found += [(tie, other) for other in self._similar(kind, number)]
        return found

    def place(self, number: int, ties: Iterable[tuple[Tie, int]], side: str = "") -> None:
        """Unite a row with the rows it is tied to; train is the stronger side."""
        sides = {side, *(self.side(other) for _, other in ties)}
        for _, other in ties:
            self.groups.merge(number, other)
        group = self.groups[number]
        self._sides[group] = next((side for side in Side if side in sides), "")
        self._labels[number] = group
        for tie, key in self._keys(number):
            if tie is not Tie.SAME_ROW or side:  # only the previous ledger's rows come again
                self._firsts[tie].setdefault(key, number)
        for kind, shown_by in self._shown_by.items():
            for shown in self._tying(kind, number):
                if shown_by[shown] < 0:
                    shown_by[shown] = number

    def conflict(self, ties: Sequence[tuple[Tie, int]]) -> str:
        """What is wrong with ties that lead to both sides; empty if they do not."""
        examples = {self.side(other): (tie, other) for tie, other in reversed(ties)}
        if not examples.keys() >= set(Side):
            return ""
        (train_tie, train), (tie, held_out) = examples[Side.TRAIN], examples[Side.HELD_OUT]
        return (
            f"it would join row {self.rows[train].row_id} (train, {train_tie.words}) "
            f"to row {self.rows[held_out].row_id} (held out, {tie.words})"
        )

    def keys(self, numbers: Iterable[int]) -> dict[int, str]:
        """Group -> smallest product value of these of its rows, else the smallest row id."""
        smallest: dict[int, tuple[bool, str]] = {}
        for number in numbers:
            row, group = self.rows[number], self.groups[number]
            product = row.product and (row.product_key or row.product)
            key = (not product, product or row.row_id)  # any product comes before the row ids
            smallest[group] = min(smallest.get(group, key), key)
        return {group: key for group, (_, key) in smallest.items()}

    def shared_with_train(self, sides: dict[int, str]) -> dict[int, list[str]]:
        """Held-out row -> what of it train rows have too, itself or one near it.

        Args:
            sides: row -> side, of the rows of today that have one.
        """
        shared = defaultdict(list)
        for kind in sorted(self.kinds):
            likeness = self.kinds[kind]
            of_train = likeness.had_by(row for row, side in sides.items() if side == Side.TRAIN)
            for row, side in sides.items():
                if side == Side.HELD_OUT and any(
                    of_train[likeness.alike(number)].any() for number in likeness.of_rows[row]
                ):
                    shared[row].append(kind)
        return shared

    def shared_values(self, sides: dict[int, str]) -> Iterator[SharedValue]:
        """What most rows of today have in common; `sides` as for `shared_with_train`."""
        products: dict[str, list[int]] = defaultdict(list)
        for number in range(self.first, len(self.rows)):
            products[self.rows[number].product].append(number)
        products.pop("", None)
        for rows in sorted(products.values(), key=len, reverse=True)[:SHOWN_VALUES]:
            rows.sort(key=lambda row: row not in sides)  # named by one that is in the catalog
            yield self._shared_value("product", self.rows[rows[0]].product_key, rows, True, sides)
        for kind, likeness in self.kinds.items():
            for ties in (True, False):
                for number in likeness.most_frequent(self._counts[kind], ties, SHOWN_VALUES):
                    rows = [row for row in likeness.rows_with(number) if row >= self.first]
                    rows.sort(key=lambda row: row not in sides)
                    label = self._sha256(number, rows[0]) if kind == PICTURE else ""
                    yield self._shared_value(kind, label, rows, ties, sides)

    def _keys(self, number: int) -> Iterator[tuple[Tie, object]]:
        """What other rows may have that ties them to this one, apart from what is similar."""
        row = self.rows[number]
        yield Tie.SAME_ROW, row.row_id
        if row.product:
            yield Tie.SAME_PRODUCT, row.product
        ties = self.kinds[PICTURE].ties
        for picture, look in zip(row.pictures, self.kinds[PICTURE].of_rows[number], strict=True):
            if ties[look]:
                yield Tie.SAME_PICTURE, picture.sha256
        for description in self._tying(DESCRIPTION, number):
            yield Tie.SAME_DESCRIPTION, description

    def _tying(self, kind: str, number: int) -> list[int]:
        """Those images or descriptions of a row that tie it to others."""
        likeness = self.kinds[kind]
        return [each for each in likeness.of_rows[number] if likeness.ties[each]]

    def _similar(self, kind: str, number: int) -> list[int]:
        """Placed rows with something similar, one of each group."""
        found, shown_by, likeness = [], self._shown_by[kind], self.kinds[kind]
        for shown in self._tying(kind, number):
            if shown_by[shown] >= 0:  # united with all that is near when it was placed
                found.append(int(shown_by[shown]))
                continue
            alike = likeness.alike(shown)
            placed = shown_by[alike[likeness.ties[alike]]]
            found += one_of_each(placed[placed >= 0], self._labels)
        return found

    def _on_both_sides(self, kind: str) -> tuple[list[int], list[int]]:
        """Train rows of the previous ledger, and the held-out ones that shared something."""
        numbers = range(self.first)
        train = [number for number in numbers if self.rows[number].side == Side.TRAIN]
        shared = [
            number for number in numbers if kind in self.rows[number].shared_with_train.split()
        ]
        return train, shared

    def _sha256(self, look: int, row: int) -> str:
        """Of the first image of a row that looks so."""
        likeness = self.kinds[PICTURE]
        alike = set(likeness.alike(look).tolist())
        own = zip(self.rows[row].pictures, likeness.of_rows[row], strict=True)
        return next(picture.sha256 for picture, number in own if number in alike)

    def _shared_value(
        self, kind: str, label: str, rows: list[int], ties: bool, sides: dict[int, str]
    ) -> SharedValue:
        return SharedValue(
            kind=kind,
            label=label,
            row_id=self.rows[rows[0]].row_id,
            rows=len(rows),
            products=len({self._products[row] for row in rows}),
            held_out=sum(sides.get(row) == Side.HELD_OUT for row in rows),
            ties=ties,
        )


def _place_today(placement: _Placement, first: int, sides_before: dict[str, str]) -> dict[int, str]:
    """Place the rows from number `first` on, known ones before new ones.

    Returns:
        Row in conflict -> why; these are not placed, so nobody is tied to them.
    """
    numbers = range(first, len(placement.rows))
    is_new = {number: placement.rows[number].row_id not in sides_before for number in numbers}
    conflicts = {}
    for number in sorted(numbers, key=is_new.__getitem__):
        ties = placement.ties(number)
        conflict = placement.conflict(ties) if is_new[number] else ""
        if conflict:
            conflicts[number] = conflict
        else:
            placement.place(number, ties)
    return conflicts


def _most_shared(values: Iterable[SharedValue]) -> list[SharedValue]:
    """Those that several rows have: first what ties them, then what does not."""
    shared = [value for value in values if value.rows > 1]
    return sorted(shared, key=lambda value: (not value.ties, -value.rows, value.kind, value.label))


def _find_copies(
    rows: Sequence[GroupedRow],
    numbers: Iterable[int],
    conflicts: dict[int, str],
    sides_before: dict[str, str],
) -> dict[int, int]:
    """Row -> the row that it is a copy of, which is on one of the sides."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for number in numbers:
        if rows[number].content:
            same[rows[number].content].append(number)
    copies: dict[int, int] = {}
    for members in same.values():
        usable = [number for number in members if number not in conflicts]
        known = [number for number in usable if rows[number].row_id in sides_before]
        for kept in (known or usable)[:1]:
            copies |= {number: kept for number in members if number != kept}
    return copies


def _likeness_of_pictures(rows: Sequence[GroupedRow], duplicates: DuplicatesConfig) -> Likeness:
    looks = Looks([picture for row in rows for picture in row.pictures], duplicates)
    of_rows = [tuple(looks.numbers[picture.look] for picture in row.pictures) for row in rows]
    return Likeness(of_rows, len(looks.numbers), looks.near)


def _likeness_of_descriptions(rows: Sequence[GroupedRow], duplicates: DuplicatesConfig) -> Likeness:
    keys = [row.description for row in rows]
    texts = Descriptions([key for key in keys if key], duplicates)
    of_rows = [(texts.numbers[key.digest],) if key else () for key in keys]
    return Likeness(of_rows, len(texts.numbers), texts.near)


def _side_by_hash(key: str, fraction: float) -> Side:
    return Side.HELD_OUT if is_held_out(key, fraction) else Side.TRAIN


def _shortened(key: str) -> str:
    if len(key) <= LONGEST_GROUP:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return f"{key[: LONGEST_GROUP - len(digest) - 1]} {digest}"
