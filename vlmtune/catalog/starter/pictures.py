"""Which columns of an unknown catalog hold pictures."""

import os
import re
from pathlib import Path
from typing import Any

from vlmtune.catalog.downloads import is_address
from vlmtune.catalog.starter.hints import NOT, PICTURE_HINTS, closeness, nothing_found
from vlmtune.catalog.starter.sample import Column, is_embedded
from vlmtune.config.data import PICTURE

PATHS = 20  # so many paths of a column are looked for on the disk
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".avif", ".tif", ".tiff", ".bmp"),
    *(".jp2", ".ico", ".psd", ".tga"),
)
SEPARATORS = ("|", ";", ", ", ",")
SMALL_PICTURES = ("thumb", "icon", "logo", "swatch", "vorschau")


def guess_pictures(sample: dict[str, Column], table: Path) -> tuple[list[str], str | None]:
    """The columns that hold pictures, and what separates several in a cell."""
    candidates = [column for column in sample.values() if _holds_pictures(column)]
    if not candidates:
        raise nothing_found("pictures", PICTURE, sample, table)
    best = min(candidates, key=lambda column: _picture_rank(column, table.parent))
    looks_right = {column.name for column in candidates}
    family = [
        column.name
        for column in sample.values()
        if _without_number(column.name) == _without_number(best.name)
        and (column.name in looks_right or not column.found)
    ]
    return sorted(family, key=_natural_order), _guess_separator(best)


def _holds_pictures(column: Column) -> bool:
    is_named = closeness(column.name, PICTURE_HINTS) < NOT
    pictures = sum(_is_picture(value, is_named) for value in column.found)
    return pictures * 2 > len(column.found)


def _is_picture(value: Any, is_named: bool) -> bool:
    if isinstance(value, list):
        return all(_is_picture(each, is_named) for each in value)
    if isinstance(value, bytes) or is_embedded(value):
        return True
    return isinstance(value, str) and (names_picture(value) or (is_named and is_address(value)))


def names_picture(text: str) -> bool:
    """Whether a text is a path or an address that ends as picture files do."""
    text = text.strip().casefold()
    return text.endswith(SUFFIXES) or (
        is_address(text) and re.split("[?#]", text)[0].endswith(SUFFIXES)
    )


def _picture_rank(column: Column, root: Path) -> tuple[bool, int, int]:
    """The smaller, the likelier: no thumbnails, what is at hand before what is elsewhere."""
    is_small = any(word in column.name.casefold() for word in SMALL_PICTURES)
    place = min(_distance(value, root) for value in column.found[:PATHS])
    return is_small, place, closeness(column.name, PICTURE_HINTS)


def _distance(value: Any, root: Path) -> int:
    """0: embedded or on the disk, 1: an address, 2: a path that leads nowhere."""
    if isinstance(value, list):
        return min(_distance(each, root) for each in value)
    if not isinstance(value, str):
        return 0
    if is_address(value):
        return 1
    paths = (part.strip() for sign in SEPARATORS for part in value.split(sign))
    return 0 if any(os.path.isfile(root / path) for path in paths) else 2


def _without_number(name: str) -> str:
    return re.sub(r"[\s_.-]*\d+", "", name).casefold()


def _natural_order(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _guess_separator(column: Column) -> str | None:
    """The one that makes the most pictures of the cells, if all that it makes are pictures."""
    cells = [v for v in column.found if isinstance(v, str) and _is_picture(v, is_named=True)]
    counts = {
        sign: sum(len(pictures_of_cell(cell, sign)) for cell in cells)
        for sign in SEPARATORS
        if all(_are_of_one_kind(pictures_of_cell(cell, sign)) for cell in cells)
    }
    best = max(counts, key=lambda sign: counts[sign], default=None)
    return best if best and counts[best] > len(cells) else None


def _are_of_one_kind(parts: list[str]) -> bool:
    """All addresses, which may hold a separator themselves, or all paths."""
    addresses = sum(map(is_address, parts))
    return addresses == len(parts) or (addresses == 0 and all(map(names_picture, parts)))


def pictures_of_cell(value: Any, separator: str | None) -> list[Any]:
    """The pictures of a cell."""
    if value is None or isinstance(value, list):
        return value or []
    if not isinstance(value, str) or not separator:
        return [value]
    return [part.strip() for part in value.split(separator) if part.strip()]
