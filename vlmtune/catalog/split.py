"""Which rows are held out: whole groups of them, each on one side for as long as it exists.

Rows of one product, or with the same or nearly the same picture, form a group. The side of a new
group is decided by a hash of its key, so that it depends neither on the row order nor on other
groups; the side of a known one is carried over from the ledger of an earlier run.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vlmtune.catalog.duplicates import Looks, PictureKey, one_of_each
from vlmtune.catalog.ledger import Side
from vlmtune.config.data import DuplicatesConfig, HeldOutConfig

LONGEST_GROUP = 60  # characters


class Tie(StrEnum):
    """Why two rows belong to one group."""

    SAME_ROW = "same_row"  # as in the previous ledger
    SAME_PRODUCT = "same_product"
    SAME_PICTURE = "same_picture"
    SIMILAR_PICTURE = "similar_picture"

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
    """

    row_id: str
    product: str
    pictures: tuple[PictureKey, ...]
    side: str = ""
    product_key: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a row belongs.

    Attributes:
        group: key of its group; empty if the row is to be quarantined.
        side: train or held_out; empty likewise.
        carried: whether the side comes from the previous ledger, the row's own or its group's.
        conflict: why the row fits on neither side and is to be quarantined; else empty.
        similar_to: id of another row, of today or of the previous ledger, with a picture that is
            similar to one of this row but not the same file; empty if none is known.
    """

    group: str
    side: str
    carried: bool
    conflict: str = ""
    similar_to: str = ""


@dataclass(frozen=True)
class SharedGroup:
    """A group of more than one row.

    Attributes:
        group: its key.
        rows: indices of its rows, ascending.
        ties: what its rows have in common; empty if only rows of the past connect them.
    """

    group: str
    rows: list[int]
    ties: tuple[Tie, ...]


def is_held_out(key: str, fraction: float) -> bool:
    """Whether the group with this key is held out.

    The first 8 bytes of the key's SHA-256, read as a number in [0, 1), are compared with the
    fraction: a row keeps its side whatever other rows come and go.
    """
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return position < fraction


def assign_sides(
    rows: Sequence[GroupedRow],
    previous: Sequence[GroupedRow],
    held_out: HeldOutConfig,
    duplicates: DuplicatesConfig,
) -> list[Assignment]:
    """Put rows into groups and groups on sides, so that no tie leads from side to side.

    Rows of the previous ledger come first, each with its side; then the rows that it knows; then
    the new ones in the catalog's order, which join the groups they are tied to. A new row that
    would join a train group to a held-out one belongs to neither and is in conflict.

    A row of the previous ledger stays on its side, whatever the hash or the fraction says now.
    The one exception: where ties that did not count before (a changed `held_out.by`, larger
    distances) join known rows of both sides, all of them are trained on. Held-out rows would
    leak there, while training on more rows makes no later evaluation dishonest.

    A new group's side is that of the smallest product value of its rows, or of the smallest row
    id where no row has a product. Ties chain: a group may hold rows that are not tied directly.

    Args:
        rows: of the catalog today, in its order.
        previous: rows kept by the previous ledger, with their sides; empty for a first run.
        held_out: the share of the groups to hold out.
        duplicates: when two pictures count as similar.

    Returns:
        One assignment a row, in order. One of the sides may be empty.
    """
    placement = _Placement([*previous, *rows], duplicates)
    for number, row in enumerate(previous):
        placement.place(number, placement.ties(number), row.side)
    sides_before = {row.row_id: row.side for row in previous}
    conflicts = _place_today(placement, len(previous), sides_before)
    numbers = range(len(previous), len(placement.rows))
    keys = placement.keys(number for number in numbers if number not in conflicts)

    def assign(number: int) -> Assignment:
        if number in conflicts:
            return Assignment("", "", False, conflicts[number])
        known, key = placement.side(number), keys[placement.groups[number]]
        side = known or _side_by_hash(key, held_out.fraction)
        before = sides_before.get(placement.rows[number].row_id)
        carried = bool(known) and before in (None, known)
        similar_to = placement.similar_to.get(number, "")
        return Assignment(_shortened(key), side, carried, similar_to=similar_to)

    return [assign(number) for number in numbers]


def groups_of_several(
    rows: Sequence[GroupedRow], assignments: Sequence[Assignment]
) -> list[SharedGroup]:
    """The groups with more than one row, biggest first, and what ties their rows.

    Args:
        rows: as given to `assign_sides`.
        assignments: as it returned them.
    """
    members: dict[str, list[int]] = {}
    for number, assignment in enumerate(assignments):
        if assignment.group:
            members.setdefault(assignment.group, []).append(number)
    groups = [
        SharedGroup(group, numbers, _common(rows, assignments, numbers))
        for group, numbers in members.items()
        if len(numbers) > 1
    ]
    return sorted(groups, key=lambda group: (-len(group.rows), group.group))


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
    """The rows that have their place: united into groups that may know their side."""

    def __init__(self, rows: Sequence[GroupedRow], duplicates: DuplicatesConfig) -> None:
        import numpy

        self.rows = rows
        self.groups = _Groups(len(rows))
        self.similar_to: dict[int, str] = {}  # row -> id of another row
        self._sides: dict[int, str] = {}  # group -> side
        # What rows share -> the first row that has it.
        self._firsts: dict[Tie, dict[str, int]] = {tie: {} for tie in Tie}
        self._looks = Looks([picture for row in rows for picture in row.pictures], duplicates)
        self._shown_by = numpy.full(len(self._looks.numbers), -1)  # look -> the first row with it
        self._labels = numpy.arange(len(rows))  # rows of equal label are in one group

    def side(self, number: int) -> str:
        """Side of the group of a placed row; empty if it has none yet."""
        return self._sides[self.groups[number]]

    def ties(self, number: int) -> list[tuple[Tie, int]]:
        """Ties of a row to placed rows: at least one to each group that it is tied to."""
        shared = _shared(self.rows[number])
        ties = [(tie, self._firsts[tie][key]) for tie, key in shared if key in self._firsts[tie]]
        for picture in self.rows[number].pictures:
            ties += [(Tie.SIMILAR_PICTURE, other) for other in self._similar(picture)]
        return ties

    def place(self, number: int, ties: Iterable[tuple[Tie, int]], side: str = "") -> None:
        """Unite a row with the rows it is tied to; train is the stronger side."""
        sides = {side, *(self.side(other) for _, other in ties)}
        for tie, other in ties:
            self.groups.merge(number, other)
            self._note_similar(number, tie, other)
        group = self.groups[number]
        self._sides[group] = next((side for side in Side if side in sides), "")
        self._labels[number] = group
        for tie, key in _shared(self.rows[number]):
            if tie is not Tie.SAME_ROW or side:  # only the previous ledger's rows come again
                self._firsts[tie].setdefault(key, number)
        for picture in self.rows[number].pictures:
            look = self._looks.numbers[picture.look]
            if self._shown_by[look] < 0:
                self._shown_by[look] = number

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

    def _similar(self, picture: PictureKey) -> list[int]:
        look = self._looks.numbers[picture.look]
        first = int(self._shown_by[look])
        if first >= 0:  # united with all that is near when it was placed
            return [] if picture.sha256 in self._firsts[Tie.SAME_PICTURE] else [first]
        placed = self._shown_by[self._looks.near(look)]
        return one_of_each(placed[placed >= 0], self._labels)

    def _note_similar(self, number: int, tie: Tie, other: int) -> None:
        if tie is Tie.SIMILAR_PICTURE:
            self.similar_to.setdefault(number, self.rows[other].row_id)
        elif tie is not Tie.SAME_PRODUCT and other in self.similar_to:
            self.similar_to.setdefault(number, self.similar_to[other])


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


def _shared(row: GroupedRow) -> Iterator[tuple[Tie, str]]:
    """What other rows may have in common with this one, apart from similar pictures."""
    yield Tie.SAME_ROW, row.row_id
    if row.product:
        yield Tie.SAME_PRODUCT, row.product
    for picture in row.pictures:
        yield Tie.SAME_PICTURE, picture.sha256


def _common(
    rows: Sequence[GroupedRow], assignments: Sequence[Assignment], numbers: list[int]
) -> tuple[Tie, ...]:
    """The ties among the rows of a group."""
    counts = Counter(key for number in numbers for key in set(_shared(rows[number])))
    ties = {tie for (tie, _), count in counts.items() if count > 1}
    if any(assignments[number].similar_to for number in numbers):
        ties.add(Tie.SIMILAR_PICTURE)
    return tuple(tie for tie in Tie if tie in ties)


def _side_by_hash(key: str, fraction: float) -> Side:
    return Side.HELD_OUT if is_held_out(key, fraction) else Side.TRAIN


def _shortened(key: str) -> str:
    if len(key) <= LONGEST_GROUP:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return f"{key[: LONGEST_GROUP - len(digest) - 1]} {digest}"
