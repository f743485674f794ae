"""A catalog and its ledger, read column by column with little of them in memory."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.ledger import Decision, RowLedger

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 1000
UNSURE = "unsure"  # which language it is


@dataclass(frozen=True)
class CatalogReader:
    """A catalog with its ledger, read in small batches and without its pictures."""

    catalog: Catalog
    ledger: RowLedger

    def lines(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Columns of the ledger, of the rows that are in the catalog."""
        for decision, *values in read_columns(self.ledger.lines, "decision", *columns):
            if Decision(decision).in_catalog:
                yield tuple(values)

    def texts(self, column: str) -> Iterator[str]:
        """One column of the catalog."""
        return (text or "" for (text,) in read_columns(self.catalog.rows, column))

    def lengths(self) -> list[int]:
        """Of the descriptions, in characters."""
        return [characters for (characters,) in self.lines("characters")]

    def sides(self) -> list[int]:
        """The longest side of each picture, in pixels."""
        pictures = (picture for (pictures,) in self.lines("pictures") for picture in pictures)
        return [max(each["width"], each["height"]) for each in pictures if each["width"]]

    def languages(self) -> Counter[str]:
        """Language of the description -> rows."""
        return Counter(language or UNSURE for (language,) in self.lines("language"))


def read_columns(rows: "Dataset", *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of some columns, row by row, with little of the table in memory at a time."""
    for batch in rows.select_columns(list(columns)).iter(batch_size=BATCH):
        yield from zip(*(batch[column] for column in columns), strict=True)


def product_of(text: str | None) -> str:
    """A value of `held_out.by` as it is compared: in any case and spacing."""
    return " ".join((text or "").casefold().split())


def first_text(texts: Iterable[str | None]) -> str:
    """Of the values of the fields of `held_out.by` the first that is not empty."""
    return next((text for text in texts if text and text.strip()), "")


def read_products(rows: "Dataset", fields: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Row id and product, as the catalog has it, of each row; `fields` are those of
    `held_out.by` that the catalog has."""
    for row_id, *texts in read_columns(rows, ROW_ID, *fields):
        yield row_id, first_text(texts)
