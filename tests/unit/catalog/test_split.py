"""A group stays on its side, whatever other rows come and go, and no tie leads across."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest

from vlmtune.catalog.descriptions import DescriptionKey
from vlmtune.catalog.duplicates import PictureKey
from vlmtune.catalog.split import (
    Assignment,
    GroupedRow,
    is_held_out,
    split_rows,
)
from vlmtune.config.data import DuplicatesConfig, HeldOutConfig

DUPLICATES = DuplicatesConfig(max_hash_distance=2, max_colour_distance=10)
ROWS = 400


def picture(name: int, hash_step: int = 0) -> PictureKey:
    """A picture of its own for each name; near those of its name with a hash step of 1 or 2."""
    phash = random.Random(name).getrandbits(64) ^ (2**hash_step - 1)
    return PictureKey(f"{name}/{hash_step}", f"{phash:016x}", "64" * 48)


def row(row_id: str, *pictures: PictureKey, product: str = "", side: str = "") -> GroupedRow:
    """A row, with a picture of its own unless some are given."""
    own = picture(1000 + sum(ord(letter) * 31**place for place, letter in enumerate(row_id)))
    return GroupedRow(row_id, product.casefold(), pictures or (own,), side, product)


def rows_of(count: int, products: int = 0, name: str = "row") -> list[GroupedRow]:
    """Rows with different pictures, some of them of one product."""
    return [
        row(f"{name} {number}", product=f"Product {number % products}" if products else "")
        for number in range(count)
    ]


def assign(
    rows: Sequence[GroupedRow], previous: Sequence[GroupedRow] = (), fraction: float = 0.2
) -> dict[str, Assignment]:
    """Row id -> assignment."""
    config = HeldOutConfig(fraction=fraction, by="name")
    found = split_rows(rows, previous, config, DUPLICATES).assignments
    return {row.row_id: assignment for row, assignment in zip(rows, found, strict=True)}


def held_out_of(assignments: dict[str, Assignment]) -> set[str]:
    """Ids of the rows that are held out."""
    return {row_id for row_id, found in assignments.items() if found.side == "held_out"}


def as_previous(rows: Sequence[GroupedRow], assignments: dict[str, Assignment]) -> list[GroupedRow]:
    """The rows as the next run finds them in the ledger, which has no quarantined ones."""
    found = [replace(row, side=assignments[row.row_id].side) for row in rows]
    return [row for row in found if row.side]


TRAIN = row("old train", picture(1), product="Mug", side="train")
HELD_OUT = row("old held out", picture(2), product="Lamp", side="held_out")
PREVIOUS = [TRAIN, HELD_OUT]


def test_each_row_is_on_one_side() -> None:
    """All rows have a side, about as many are held out as asked for, nothing is carried."""
    found = assign(rows_of(ROWS))
    assert {assignment.side for assignment in found.values()} == {"train", "held_out"}
    assert 50 <= len(held_out_of(found)) <= 110
    assert not any(assignment.carried or assignment.conflict for assignment in found.values())


def test_without_ties_the_hash_of_the_key_decides() -> None:
    """Rows of one product follow the raw product value, others their row id, as ever."""
    found = assign([*rows_of(ROWS, products=50), *rows_of(ROWS, name="single")])
    assert {found[f"row {number}"].group for number in range(ROWS)} == {
        f"Product {number}" for number in range(50)
    }
    assert found["single 7"].group == "single 7"
    for assignment in found.values():
        assert (assignment.side == "held_out") == is_held_out(assignment.group, 0.2)


def test_stable_when_rows_are_reordered_or_added() -> None:
    """A row keeps its group and side in a shuffled and in a larger catalog."""
    rows = rows_of(ROWS, products=90)
    before = assign(rows)
    assert assign(random.Random(0).sample(rows, ROWS)) == before
    larger = assign([*rows_of(100, name="new"), *rows])
    assert {row.row_id: larger[row.row_id] for row in rows} == before


def test_larger_fraction_keeps_what_was_held_out() -> None:
    """Raising the fraction moves rows to one side only."""
    rows = rows_of(ROWS)
    assert held_out_of(assign(rows, fraction=0.1)) < held_out_of(assign(rows, fraction=0.3))


def test_groups_never_straddle() -> None:
    """Rows of one product are on one side, all of them."""
    found = assign(rows_of(ROWS, products=40), fraction=0.3)
    assert len(held_out_of(found)) % 10 == 0
    assert len({(assignment.group, assignment.side) for assignment in found.values()}) == 40


def test_product_and_pictures_make_a_group() -> None:
    """Rows that are tied only through others share a group, named by its smallest product."""
    rows = [
        row("a", picture(1), product="Mug"),
        row("b", picture(2), product="Mug"),
        row("c", picture(2), product="Bowl"),
        row("d", picture(2, hash_step=2)),
        row("e", picture(2, hash_step=4)),
        *rows_of(20),
    ]
    found = assign(rows)
    assert {found[name].group for name in "abcd"} == {"Bowl"}
    assert len({found[name].side for name in "abcd"}) == 1
    assert found["e"].group == "Bowl"  # near d, which is near b: ties chain


def test_rows_without_a_product_are_not_one() -> None:
    """An empty product ties nothing."""
    assert len({found.group for found in assign(rows_of(50)).values()}) == 50


def test_long_group_is_shortened() -> None:
    """A long product value stays telling apart when it is cut."""
    products = ["word " * 40 + end for end in ("one", "two")]
    found = assign([row(name, product=name) for name in products] + rows_of(20))
    groups = {found[name].group for name in products}
    assert len(groups) == 2
    assert {len(group) for group in groups} == {60}
    assert [found[name].side == "held_out" for name in products] == [
        is_held_out(name, 0.2) for name in products
    ]


def test_old_rows_keep_their_side() -> None:
    """With a tenth of the rows new, another fraction and sides unlike the hash's, none moves."""
    rows = rows_of(ROWS, products=200)
    first = assign(rows)
    flipped = {"train": "held_out", "held_out": "train"}
    previous = [replace(row, side=flipped[first[row.row_id].side]) for row in rows]
    today = [*rows_of(40, name="new"), *rows[::-1]]
    for fraction in (0.05, 0.2, 0.9):
        found = assign(today, previous, fraction)
        assert {row.row_id: found[row.row_id].side for row in rows} == {
            row.row_id: row.side for row in previous
        }
        assert all(found[row.row_id].carried for row in rows)
        assert not any(found[f"new {number}"].carried for number in range(40))


@pytest.mark.parametrize("old", PREVIOUS, ids=["train", "held_out"])
@pytest.mark.parametrize("tie", ["product", "picture", "similar picture"])
def test_new_row_joins_the_side_of_its_group(old: GroupedRow, tie: str) -> None:
    """A row tied to one side by product or picture is on that side, whatever its hash says."""
    tied = {
        "product": [row(f"new {number}", product=old.product) for number in range(8)],
        "picture": [row(f"new {number}", *old.pictures) for number in range(8)],
        "similar picture": [
            row(f"new {number}", replace(old.pictures[0], sha256=str(number)))
            for number in range(8)
        ],
    }[tie]
    found = assign([*PREVIOUS, *tied], PREVIOUS)
    assert {(found[row.row_id].side, found[row.row_id].carried) for row in tied} == {
        (old.side, True)
    }


def test_rows_that_are_gone_still_tell_the_side() -> None:
    """A row whose text was edited has a new id; its product keeps it where it was."""
    edited = [row("edited", product="mug"), row("edited lamp", picture(2))]
    found = assign(edited, PREVIOUS)
    assert [assignment.side for assignment in found.values()] == ["train", "held_out"]


def test_bridging_row_is_in_conflict_and_its_neighbours_are_not() -> None:
    """Only the row that reaches both sides is put aside, with an example of each."""
    bridge = row("bridge", picture(2, hash_step=1), picture(5), product="Mug")
    today = [
        *PREVIOUS,
        bridge,
        row("of the bridge", picture(5)),
        row("near train", product="Mug"),
        row("near held out", picture(2)),
    ]
    found = assign(today, PREVIOUS)
    assert found["bridge"] == Assignment(
        group="",
        side="",
        carried=False,
        conflict="it would join row old train (train, same product) "
        "to row old held out (held out, similar picture)",
    )
    assert [row_id for row_id, assignment in found.items() if assignment.conflict] == ["bridge"]
    assert found["near train"].side == "train"
    assert found["near held out"].side == "held_out"
    assert found["of the bridge"].group == "of the bridge"


def test_bridge_between_new_rows_and_a_side() -> None:
    """New rows that took a side by a tie count for the rows after them."""
    today = [
        *PREVIOUS,
        row("joins train", picture(1), picture(6)),
        row("joins held out", picture(7), product="lamp"),
        row("bridge", picture(6), picture(7, hash_step=1)),
    ]
    found = assign(today, PREVIOUS)
    assert found["bridge"].conflict == (
        "it would join row joins train (train, same picture) "
        "to row joins held out (held out, similar picture)"
    )


def test_known_rows_joined_by_new_rules_are_trained_on() -> None:
    """Old rows of both sides that count as one product now: the held-out ones would leak."""
    today = [replace(old, product="one") for old in PREVIOUS] + rows_of(30)
    found = assign(today, PREVIOUS)
    assert (found["old train"].side, found["old train"].carried) == ("train", True)
    assert (found["old held out"].side, found["old held out"].carried) == ("train", False)


def test_known_rows_come_before_new_ones() -> None:
    """A new row above the known ones cannot draw one side to the other by a tie new today."""
    previous = [replace(old, product="") for old in PREVIOUS]
    bridge = row("bridge", picture(2), product="Mug")
    found = assign([bridge, *PREVIOUS], previous)
    assert found["bridge"].conflict
    assert [found[old.row_id].side for old in PREVIOUS] == ["train", "held_out"]


def tied(one: GroupedRow, other: GroupedRow) -> bool:
    """The definition, in plain Python; the test's pictures differ in the hash only."""
    pairs = [(a, b) for a in one.pictures for b in other.pictures]
    bits = [(int(a.phash, 16) ^ int(b.phash, 16)).bit_count() for a, b in pairs]
    same_product = bool(one.product) and one.product == other.product
    return one.row_id == other.row_id or same_product or min(bits, default=64) <= 2


def random_rows(chance: random.Random, count: int, name: str) -> list[GroupedRow]:
    """Rows with few products and pictures, so that many are tied."""
    return [
        row(
            f"{name} {number}",
            *(
                picture(chance.randrange(25), hash_step=chance.randrange(7))
                for _ in range(chance.randrange(1, 3))
            ),
            product=chance.choice(["", "", f"Product {chance.randrange(25)}"]),
        )
        for number in range(count)
    ]


def check_ties(
    today: list[GroupedRow], previous: list[GroupedRow], found: dict[str, Assignment]
) -> int:
    """Check each pair of rows, and each conflict; returns the number of conflicts."""
    kept = [row for row in today if not found[row.row_id].conflict]
    sides = defaultdict(set)
    for row_ in kept:
        sides[found[row_.row_id].group].add(found[row_.row_id].side)
    assert all(len(of_one_group) == 1 for of_one_group in sides.values())
    for one, other in combinations(kept, 2):
        if tied(one, other):
            assert found[one.row_id].group == found[other.row_id].group
    for row_ in set(today) - set(kept):
        reached = {found[other.row_id].side for other in kept if tied(row_, other)}
        reached |= {other.side for other in previous if tied(row_, other)}
        assert reached == {"train", "held_out"}
    return len(today) - len(kept)


def test_no_tie_leads_across() -> None:
    """Of random catalogs that grow and shrink, tied rows share a side, and old rows keep theirs."""
    conflicts = 0
    for seed in range(40):
        chance = random.Random(seed)
        rows, previous = random_rows(chance, 14, "first"), PREVIOUS
        for run in range(4):
            today = [*PREVIOUS, *rows]
            found = assign(today, previous, fraction=0.5)
            conflicts += check_ties(today, previous, found)
            for old in previous:
                assert old.row_id not in found or found[old.row_id].side == old.side
            previous = as_previous(today, found)
            rows = chance.sample(rows, len(rows) - 3) + random_rows(chance, 6, f"run {run}")
    assert conflicts > 40


LIMIT = 3  # products that may share something


def shares(one: GroupedRow, other: GroupedRow) -> set[str]:
    """What two rows have in common by the definition, products aside."""
    pairs = [(a, b) for a in one.pictures for b in other.pictures]
    bits = [(int(a.phash, 16) ^ int(b.phash, 16)).bit_count() for a, b in pairs]
    same = {"description"} if one.description and one.description == other.description else set()
    return same | ({"image"} if min(bits) <= 2 else set())


def ties(one: GroupedRow, other: GroupedRow, today: list[GroupedRow]) -> bool:
    """Whether two rows share something that at most LIMIT products of today have."""

    def products(kind: str, like: GroupedRow) -> int:
        return len({each.product or each.row_id for each in today if kind in shares(like, each)})

    if one.product and one.product == other.product:
        return True
    return any(
        products(kind, one) <= LIMIT and products(kind, other) <= LIMIT
        for kind in shares(one, other)
    )


def random_catalog(chance: random.Random, count: int, name: str) -> list[GroupedRow]:
    """Rows with one picture each, many of them shared, by few products or by too many."""
    rows = []
    for number in range(count):
        text = chance.choice(["", "", "boilerplate", f"text {chance.randrange(20)}"])
        shown = picture(min(chance.randrange(40), 20), hash_step=chance.randrange(3))
        rows.append(
            replace(
                row(f"{name} {number}", shown, product=f"Product {chance.randrange(30)}"),
                description=DescriptionKey(text.encode()) if text else None,
                content=f"{text} {shown.sha256} {chance.randrange(2)}".encode(),
            )
        )
    return rows


def test_random_catalogs_with_boilerplate_and_copies() -> None:
    """Whatever ties stays on one side; what crosses is marked; known rows never move; of copies
    one row is left. The catalogs grow and shrink, so that counts pass the limit both ways."""
    seen: Counter[str] = Counter()
    duplicates = DUPLICATES.model_copy(update={"max_sharing_products": LIMIT})
    config = HeldOutConfig(fraction=0.5, by="name")
    for seed in range(25):
        chance = random.Random(seed)
        rows, previous = random_catalog(chance, 30, "first"), []
        for run in range(4):
            found = split_rows(rows, previous, config, duplicates)
            sides = dict(zip(rows, found.assignments, strict=True))
            kept = [each for each in rows if sides[each].side]
            before = {each.row_id: each.side for each in previous}
            for each in kept:
                assert sides[each].side == before.get(each.row_id, sides[each].side)
                train = [other for other in kept if sides[other].side == "train"]
                shared = set().union(*(shares(each, other) for other in train))
                shared &= {"description", "image"} if sides[each].side == "held_out" else set()
                assert set(sides[each].shared_with_train.split()) == shared
                seen["marked"] += bool(shared)
            if not previous:  # later runs keep what was untied before
                for one, other in combinations(kept, 2):
                    if ties(one, other, rows):
                        assert sides[one].side == sides[other].side
                        seen["tied"] += 1
            assert len({each.content for each in kept}) == len(kept)
            for each in rows:
                assert bool(sides[each].copy_of or sides[each].conflict) == (each not in kept)
                seen["copies"] += bool(sides[each].copy_of)
                seen["conflicts"] += bool(sides[each].conflict)
            previous = [
                replace(
                    each,
                    side=sides[each].side,
                    shared_with_train=sides[each].shared_with_train,
                )
                for each in kept
            ]
            rows = chance.sample(rows, len(rows) - 8) + random_catalog(chance, 8, f"run {run}")
    assert min(seen[name] for name in ("marked", "tied", "copies", "conflicts")) > 20


def test_a_placeholder_of_thousands_of_rows() -> None:
    """A fifth of the rows show a placeholder, each saved anew, and a quarter has one text."""
    count = 10_000
    chance = random.Random(0)

    def shown(number: int) -> PictureKey:
        if number % 5:
            return PictureKey(str(number), f"{chance.getrandbits(64):016x}", "64" * 48)
        bits = 1 << number // 5 % 30 | 1 << 30 + number // 5 % 31
        return PictureKey(str(number), f"{bits:016x}", "64" * 48)

    rows = [
        GroupedRow(
            f"row {number}",
            "",
            (shown(number),),
            description=DescriptionKey(b"ask" if number % 4 == 0 else b"%d" % number),
        )
        for number in range(count)
    ]
    duplicates = DuplicatesConfig(max_hash_distance=4)
    found = split_rows(rows, [], HeldOutConfig(fraction=0.1), duplicates)
    assert len({each.group for each in found.assignments}) == count
    assert [(each.kind, each.rows) for each in found.shared] == [
        ("description", count // 4),
        ("image", count // 5),
    ]
