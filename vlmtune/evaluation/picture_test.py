"""Does a model look at the picture? Rows are described once more with another row's picture."""

import hashlib
import random
from typing import TYPE_CHECKING

from vlmtune.catalog.catalog import Catalog

if TYPE_CHECKING:
    from datasets import Dataset

SEED = 0


def other_pictures(rows: "Dataset", catalog: Catalog, count: int) -> dict[int, int]:
    """Place of a row -> place of the row whose picture it is shown instead.

    Args:
        rows: with the column `row`, the row's number in the catalog.
        count: rows to try, at most; they are drawn from all, always the same.

    Returns:
        Only rows for which there is another picture; no row lends its picture twice before all
        have.
    """
    numbers = rows.with_format(None)["row"]
    order = list(range(len(numbers)))
    random.Random(SEED).shuffle(order)
    pictures = [_digest(catalog.pictures(number)) for number in numbers]
    chosen: dict[int, int] = {}
    for at, place in enumerate(order[:count]):
        others = (order[(at + step) % len(order)] for step in range(1, len(order)))
        partner = next((other for other in others if pictures[other] != pictures[place]), None)
        if partner is not None and pictures[place]:
            chosen[place] = partner
    return dict(sorted(chosen.items()))


def with_other_pictures(rows: "Dataset", partners: dict[int, int]) -> "Dataset":
    """The rows that have a partner, each with the picture number of its partner."""
    numbers = rows.with_format(None)["row"]
    tried = rows.select(list(partners)).remove_columns("row")
    return tried.add_column("row", [numbers[partner] for partner in partners.values()])


def _digest(pictures: list[bytes]) -> str:
    """Of a row's pictures; empty without any."""
    return hashlib.sha256(b"".join(pictures)).hexdigest() if pictures else ""
