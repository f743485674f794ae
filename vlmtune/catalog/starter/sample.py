"""The first rows of an unknown catalog, column by column."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from vlmtune.catalog.tables import read_table
from vlmtune.catalog.texts import clean_text
from vlmtune.errors import UserError

ROWS = 500  # so many are looked at
DEEPEST, LONGEST_LIST = 8, 10  # of nested values


@dataclass(frozen=True)
class Column:
    """A column of the catalog, or a nested value by its dotted name.

    Attributes:
        values: one for each row; None where there is none. Of bytes only the first few.
    """

    name: str
    values: list[Any]

    @cached_property
    def found(self) -> list[Any]:
        """The values that are there."""
        return [value for value in self.values if value is not None]

    @cached_property
    def texts(self) -> list[str]:
        """One text for each row, cleaned as a run cleans it; empty where there is none."""
        plain = (value if _is_scalar(value) else "" for value in self.values)
        return [clean_text(str(value)).text for value in plain]

    @cached_property
    def filled(self) -> list[str]:
        """The texts that are not empty."""
        return [text for text in self.texts if text]

    @property
    def mean_length(self) -> float:
        """Of the texts that are there, in characters."""
        return sum(map(len, self.filled)) / max(1, len(self.filled))


def read_sample(table: Path, encoding: str) -> dict[str, Column]:
    """The columns of the first 500 rows that can be read, nested values as columns of their own.

    Raises:
        UserError: the table cannot be read, or holds no such row.
    """
    _, rows = read_table(table, encoding)
    whole = (dict(_flatten(row.cells)) for row in rows if not row.broken)
    sampled = list(islice(whole, ROWS))
    if not sampled:
        raise UserError(f"{table} holds no row that can be read.", "Add rows, or mend them.")
    names = dict.fromkeys(name for row in sampled for name in row)
    columns = [Column(name, [row.get(name) for row in sampled]) for name in names]
    parents = {name[:at] for name in names for at, sign in enumerate(name) if sign == "."}
    # A nested value that some rows lack stands there, empty, by its own name too.
    return {each.name: each for each in columns if each.found or each.name not in parents}


def _flatten(cells: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names, dotted where nested, and values."""
    for key, value in cells.items():
        name = f"{prefix}{key}"
        nested = value
        if isinstance(value, list) and any(map(_is_nested, value)):
            nested = {str(number): each for number, each in enumerate(value[:LONGEST_LIST])}
        if _is_nested(nested) and name.count(".") < DEEPEST:
            yield from _flatten(nested, f"{name}.")
        else:
            yield name, None if _is_missing(value) else _light(value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and not is_embedded(value)


def is_embedded(value: Any) -> bool:
    """Whether a value is a picture as Hugging Face has it: bytes, or else a path."""
    return isinstance(value, Mapping) and bool(value) and set(value) <= {"bytes", "path"}


def _is_missing(value: Any) -> bool:
    return value is None or value in ([], {}) or value != value or not str(value).strip()


def _light(value: Any) -> Any:
    """A value without the bulk of the pictures in it."""
    if isinstance(value, bytes):
        return value[:16]
    if isinstance(value, list):
        return [_light(each) for each in value]
    return {k: _light(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _is_scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, bytes | list | Mapping)
