"""From a source's columns to the fields of the config: nested names, texts, pictures."""

from collections.abc import Iterator, Mapping
from typing import Any

from vlmtune.config.data import PICTURE, Columns
from vlmtune.errors import UserError

# A picture as a cell has it: a path or address, or the encoded bytes with the name they came by.
PictureReference = str | tuple[bytes, str]


def require_columns(columns: Columns, found: list[str], where: str) -> None:
    """Raise UserError for a mapped column that the source lacks."""
    for field, names in columns.items():
        for name in [names] if isinstance(names, str) else names:
            if name in found or name.partition(".")[0] in found:
                continue
            raise UserError(
                f"{where} has no column {name!r}, which data.columns.{field} names "
                f"(it has {', '.join(map(repr, found))}).",
                f"Set data.columns.{field} to one of these.",
            )


def find_value(cells: Mapping[str, Any], name: str) -> Any:
    """The value of a column; dots lead into nested values, as in `images.0.url`.

    A column that has the dots in its own name comes first. None if there is no such value.
    """
    if name in cells:
        return cells[name]
    value: Any = cells
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def read_text(cells: Mapping[str, Any], name: str) -> str:
    """A cell as text; missing values of any reader are the empty string."""
    value = find_value(cells, name)
    if isinstance(value, bytes):  # some writers of parquet leave out that a column is text
        return value.decode(errors="replace")
    return "" if _is_missing(value) else str(value)


def read_pictures(
    cells: Mapping[str, Any], columns: Columns, separator: str | None
) -> list[PictureReference]:
    """The pictures that a row names, in the order of its columns and cells."""
    names = columns[PICTURE]
    found: list[PictureReference] = []
    for name in [names] if isinstance(names, str) else names:
        found += _references(find_value(cells, name), separator)
    return found


def _references(value: Any, separator: str | None) -> Iterator[PictureReference]:
    if _is_missing(value):
        return
    if isinstance(value, bytes):
        yield (value, "")
    elif isinstance(value, Mapping):  # the Hugging Face image: bytes, or else a path
        if isinstance(value.get("bytes"), bytes):
            yield (value["bytes"], str(value.get("path") or ""))
        else:
            yield from _references(value.get("path"), None)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each, None)
    else:
        parts = str(value).split(separator) if separator else [str(value)]
        yield from (part.strip() for part in parts if part.strip())


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or value != value  # NaN is not equal to itself
