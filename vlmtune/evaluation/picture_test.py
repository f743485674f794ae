"""Does a model look at the picture? Rows are described once more with another row's picture."""

import hashlib
from typing import TYPE_CHECKING

from vlmtune.catalog.catalog import Catalog
from vlmtune.sampling import draw_order

if TYPE_CHECKING:
    from datasets import Dataset


def other_pictures(rows: "Dataset", catalog: Catalog, count: int) -> dict[int, int]:
    """Place of a row -> place of the row whose picture it is shown instead.

    Args:
        rows: with the columns `row` (the row's number in the catalog), `row_id` and `group`.
        count: rows to try, at most; they are drawn over all groups, always the same.

    Returns:
        Only rows for which there is another picture, of a row of another group.
    """
    numbers, groups = (rows.with_format(None)[name] for name in ("row", "group"))
    order = draw_order(rows)
    pictures = [_digest(catalog.pictures(number)) for number in numbers]
    chosen: dict[int, int] = {}
    for at, place in enumerate(order[:count]):
        others = (order[(at + step) % len(order)] for step in range(1, len(order)))
        different = (
            other
            for other in others
            if groups[other] != groups[place] and pictures[other] != pictures[place]
        )
        partner = next(different, None)
        if partner is not None and pictures[place]:
            chosen[place] = partner
    return dict(sorted(chosen.items()))


def with_other_pictures(rows: "Dataset", partners: dict[int, int]) -> "Dataset":
    """The rows that have a partner, each with the picture number of its partner."""
    numbers = rows.with_format(None)["row"]
    # In memory: beside the table is the artifact store, which keeps only what was stored.
    tried = rows.select(list(partners)).remove_columns("row").flatten_indices(keep_in_memory=True)
    return tried.add_column("row", [numbers[partner] for partner in partners.values()])


def _digest(pictures: list[bytes]) -> str:
    """Of a row's pictures; empty without any."""
    return hashlib.sha256(b"".join(pictures)).hexdigest() if pictures else ""
