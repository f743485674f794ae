"""Which held-out rows are evaluated when not all are: drawn over all groups, always the same."""

from collections import Counter
from typing import TYPE_CHECKING

from vlmtune.revision import hash_text

if TYPE_CHECKING:
    from datasets import Dataset


def draw_rows(rows: "Dataset", count: int) -> "Dataset":
    """At most `count` rows, in the order of the table.

    Groups are drawn by a hash of their key, and rows of a group by a hash of their id: one row of
    each group before a second of any. The order of the catalog has no say, and a larger draw holds
    all rows of a smaller one.

    Args:
        rows: with the columns `group` and `row_id`.
    """
    return rows if count >= len(rows) else rows.select(sorted(draw_order(rows)[:count]))


def draw_order(rows: "Dataset") -> list[int]:
    """Places of all rows, in the order in which they are drawn."""
    plain = rows.with_format(None)  # the images need not be decoded for that
    hashed = [
        (hash_text(row_id), hash_text(group), place)
        for place, (row_id, group) in enumerate(zip(plain["row_id"], plain["group"], strict=True))
    ]
    drawn: Counter[str] = Counter()
    ranked = []
    for _, group, place in sorted(hashed):
        ranked.append((drawn[group], group, place))
        drawn[group] += 1
    return [place for *_, place in sorted(ranked)]
