"""Descriptions of a whole catalog, with what there is to say about each of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from vlmtune.artifact import Artifact

if TYPE_CHECKING:
    from pyarrow import Schema, Table


# Of the table, beside one column a field of the catalog.
OWN_COLUMNS = ("row_id", "place", "description", "flags", "problems", "model", "seconds")


class DescribingRecord(BaseModel):
    """How it went.

    Attributes:
        model: what wrote the descriptions.
        engine: what generated them.
        rows: that have a description.
        new_rows: of these, written by this run; an interrupted one had written the others.
        flagged_rows: that break at least one rule of the trade.
        flags: rule -> rows that break it, most frequent first.
        quarantined_rows: of the source that could not be described; the ledger says why.
        new_tokens: that this run generated.
        seconds: that this run took to write.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    engine: str
    rows: int
    new_rows: int
    flagged_rows: int
    flags: dict[str, int]
    quarantined_rows: int
    new_tokens: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Of the rows that this run wrote; 0 if it wrote none."""
        return round(self.new_rows / self.seconds, 2) if self.seconds else 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """What is tracked."""
        counts = ("rows", "new_rows", "flagged_rows", "quarantined_rows", "new_tokens", "seconds")
        found = {name: float(getattr(self, name)) for name in counts}
        return found | {"rows_per_second": self.rows_per_second}


@dataclass(frozen=True)
class Descriptions(Artifact):
    """The described rows in the catalog's order.

    Attributes:
        table: the columns of `OWN_COLUMNS` and one of text for each field.
        record: how it went.
    """

    table: "Table"
    record: DescribingRecord


def field_column(field: str) -> str:
    """The column of a field; one that is called as a column of ours is told apart from it."""
    return f"fields.{field}" if field in OWN_COLUMNS else field


def table_schema(fields: list[str]) -> "Schema":
    """The columns of the table, in order."""
    import pyarrow

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    kinds: dict[str, Any] = {"row_id": text, "place": text}
    kinds |= {field_column(field): text for field in fields}
    kinds |= {"description": text, "flags": texts, "problems": texts, "model": text}
    return pyarrow.schema(kinds | {"seconds": pyarrow.float64()})
