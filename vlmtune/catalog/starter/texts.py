"""Which columns of an unknown catalog are the description, the name, the category, the brand."""

import re
from collections.abc import Callable
from pathlib import Path

from vlmtune.catalog.downloads import is_address
from vlmtune.catalog.starter.hints import (
    BRAND_HINTS,
    CATEGORY_HINTS,
    DESCRIPTION_HINTS,
    EXACT,
    NAME_HINTS,
    NOT,
    PICTURE_HINTS,
    closeness,
    nothing_found,
)
from vlmtune.catalog.starter.pictures import names_picture
from vlmtune.catalog.starter.sample import Column
from vlmtune.config.data import DESCRIPTION

NAMED_HINTS = (PICTURE_HINTS, CATEGORY_HINTS, BRAND_HINTS)  # a brand's name is no product's
SHORTEST_DESCRIPTION, SHORTEST_UNNAMED = 12, 40  # mean characters, with a telling name and without
LONGEST_NAME, LONGEST_CATEGORY = 150, 80  # mean characters
FEW_VALUES = 20  # a column of no more counts as few, however short the table is
MOST = 0.9  # of the rows


def guess_texts(sample: dict[str, Column], pictures: list[str], table: Path) -> dict[str, str]:
    """Field -> column, for all fields but the picture."""
    others = [column for name, column in sample.items() if name not in pictures]
    texts = [column for column in others if _holds_text(column)]
    description = _guess_description(texts)
    if description is None:
        raise nothing_found("descriptions", DESCRIPTION, sample, table)
    rows = [row for row, text in enumerate(description.texts) if text]
    texts.remove(description)
    found: dict[str, Column | None] = {}
    found["category"] = _closest(texts, CATEGORY_HINTS, lambda column: _is_category(column, rows))
    found["brand"] = _closest(texts, BRAND_HINTS, lambda column: _is_in_most(column, rows))
    rest = [column for column in texts if column not in found.values()]
    found["name"] = _closest(rest, NAME_HINTS, _is_name)
    order = {name: found[name] for name in ("name", "category", "brand")}
    guessed = {name: column.name for name, column in order.items() if column}
    return guessed | {DESCRIPTION: description.name}


def _holds_text(column: Column) -> bool:
    """Whether most values are words: no numbers, addresses, paths or lists."""
    words = [text for text in column.filled if re.search(r"[^\W\d_]", text)]
    plain = [text for text in words if not is_address(text) and not names_picture(text)]
    return len(plain) * 2 > len(column.found)


def _guess_description(texts: list[Column]) -> Column | None:
    named = [
        column
        for column in texts
        if closeness(column.name, DESCRIPTION_HINTS) < NOT
        and column.mean_length >= SHORTEST_DESCRIPTION
    ]
    unnamed = [column for column in texts if _reads_as_description(column)]
    return max(named or unnamed, key=_description_weight, default=None)


def _description_weight(column: Column) -> float:
    is_exact = closeness(column.name, DESCRIPTION_HINTS) == EXACT
    return column.mean_length * (2 if is_exact else 1)


def _reads_as_description(column: Column) -> bool:
    """Long texts that differ, in words: no keys or digests."""
    is_varied = len(set(column.filled)) * 2 > len(column.filled)
    sentences = [text for text in column.filled if " " in text or not text.isascii()]
    is_long = column.mean_length >= SHORTEST_UNNAMED
    return is_long and is_varied and len(sentences) * 2 > len(column.filled)


def _is_category(column: Column, rows: list[int]) -> bool:
    values = [column.texts[row] for row in rows if column.texts[row]]
    few = max(FEW_VALUES, len(values) / 2)
    return 0 < len(set(values)) <= few and column.mean_length <= LONGEST_CATEGORY


def _is_in_most(column: Column, rows: list[int]) -> bool:
    return sum(bool(column.texts[row]) for row in rows) >= MOST * len(rows)


def _is_name(column: Column) -> bool:
    is_about_another = any(closeness(column.name, hints) < NOT for hints in NAMED_HINTS)
    is_exact = closeness(column.name, NAME_HINTS) == EXACT
    is_varied = len(set(column.filled)) * 2 > len(column.filled)
    return column.mean_length <= LONGEST_NAME and not is_about_another and (is_exact or is_varied)


def _closest(columns: list[Column], hints: str, is_fit: Callable[[Column], bool]) -> Column | None:
    """The column whose name is closest to a hint; of equal ones that with the most values."""
    fit = [c for c in columns if closeness(c.name, hints) < NOT and is_fit(c)]
    return min(fit, key=lambda c: (closeness(c.name, hints), -len(set(c.filled))), default=None)
