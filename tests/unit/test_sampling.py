"""Rows are drawn over all groups, whatever the order of the catalog."""

import random
from typing import Any

from datasets import Dataset

from vlmtune.sampling import draw_order, draw_rows


def table(rows: list[tuple[str, str]]) -> Dataset:
    """Rows of (group, row id)."""
    groups, ids = zip(*rows, strict=True)
    return Dataset.from_dict({"group": groups, "row_id": ids})


# A catalog sorted by category: 40 mugs in 4 variants each, then 40 lamps.
MUGS = [
    (f"mug {product}", f"mug {product}-{variant}") for product in range(40) for variant in "abcd"
]
LAMPS = [(f"lamp {product}", f"lamp {product}") for product in range(40)]
SORTED = table(MUGS + LAMPS)


def drawn(rows: Any, count: int) -> set[str]:
    """Ids of the rows that are drawn."""
    return set(draw_rows(rows, count)["row_id"])


def test_every_category_is_drawn() -> None:
    """The first rows of this catalog are mugs; its lamps are half of the groups."""
    lamps = sum(row_id.startswith("lamp") for row_id in drawn(SORTED, 40))
    assert 10 <= lamps <= 30


def test_one_row_of_each_group_before_a_second_of_any() -> None:
    """80 rows are 80 groups; ten more are second rows."""
    assert len(set(draw_rows(SORTED, 80)["group"])) == 80
    groups = draw_rows(SORTED, 90)["group"]
    assert len(groups) == 90 and max(groups.count(group) for group in groups) == 2


def test_the_order_of_the_catalog_has_no_say() -> None:
    """The same rows, in the order of the table; a larger draw holds the smaller one."""
    shuffled = [*MUGS, *LAMPS]
    random.Random(0).shuffle(shuffled)
    assert drawn(table(shuffled), 30) == drawn(SORTED, 30) < drawn(SORTED, 100)
    ids = [row_id for _, row_id in MUGS + LAMPS]
    places = [ids.index(row_id) for row_id in draw_rows(SORTED, 30)["row_id"]]
    assert places == sorted(places)


def test_all_rows_where_there_are_no_more() -> None:
    """In their own order, and each once."""
    assert draw_rows(SORTED, 500)["row_id"] == SORTED["row_id"]
    assert sorted(draw_order(SORTED)) == list(range(len(SORTED)))
