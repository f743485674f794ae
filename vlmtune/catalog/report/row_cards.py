"""Rows of the ledger as the web pages show them, with their pictures and reasons."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.catalog_reader import CatalogReader
from vlmtune.catalog.contact_sheet import data_uri
from vlmtune.catalog.ledger import Decision, RowLedger
from vlmtune.catalog.report.reasons import reason_meaning, reason_mend

THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 96, 60  # pixels; 1 to 95
SHOWN_PICTURES = 3  # of a row
QUARANTINE_TABLE = "metadata.jsonl"


@dataclass(frozen=True)
class ShownReason:
    """A reason in plain words, and what to do about it."""

    meaning: str
    message: str
    field: str
    mend: str


@dataclass(frozen=True)
class RowCard:
    """A row of the ledger with thumbnails as data URIs; None for an unreadable picture."""

    line: dict[str, Any]
    reasons: list[ShownReason]
    thumbnails: list[str | None]


class RowCards:
    """Looks up rows and their pictures by their place in the ledger's table, from 0."""

    def __init__(self, catalog: Catalog, ledger: RowLedger) -> None:
        self.catalog, self.ledger = catalog, ledger
        self.reader = CatalogReader(catalog, ledger)
        self.numbers = {row_id: n for n, row_id in enumerate(self.reader.texts(ROW_ID))}
        self._positions = {row_id: n for n, row_id in enumerate(ledger.lines[ROW_ID])}

    def positions(self, row_ids: list[str]) -> list[int]:
        """Of rows of the catalog."""
        return [self._positions[row_id] for row_id in row_ids]

    def cards(self, positions: Sequence[int]) -> list[RowCard]:
        """The rows at these places, in this order."""
        lines = list(self.ledger.lines.select(positions))
        quarantined = {line["line"] for line in lines if _is_quarantined(line)}
        files = _quarantined_files(self.ledger.quarantine, quarantined)
        return [self._card(line, files.get(line["line"], [])) for line in lines]

    def _card(self, line: dict[str, Any], files: list[Path]) -> RowCard:
        if _is_quarantined(line):
            pictures = [file.read_bytes() for file in files[:SHOWN_PICTURES]]
        else:
            row = line["copy_of"] or line["row_id"]  # a copy has the same pictures
            pictures = self.catalog.pictures(self.numbers[row])[:SHOWN_PICTURES]
        return RowCard(
            line=line,
            reasons=[
                ShownReason(
                    reason_meaning(reason["code"]),
                    reason["message"],
                    reason["field"],
                    reason_mend(reason["code"]),
                )
                for reason in line["reasons"]
            ],
            thumbnails=[data_uri(each, THUMBNAIL_SIDE, THUMBNAIL_QUALITY) for each in pictures],
        )


def _is_quarantined(line: dict[str, Any]) -> bool:
    return line["decision"] == Decision.QUARANTINED


def _quarantined_files(quarantine: Path, lines: set[int]) -> dict[int, list[Path]]:
    """Line -> picture files, of these lines; a path that leads out of the folder is left out."""
    table = quarantine / QUARANTINE_TABLE
    found: dict[int, list[Path]] = {}
    if not lines or not table.is_file():
        return found
    with table.open(encoding="utf-8", errors="surrogatepass") as file:
        for text in file:
            row = json.loads(text)
            if row["_line"] in lines:
                paths = [(quarantine / name).resolve() for name in row["_pictures"]]
                found[row["_line"]] = [path for path in paths if _lies_in(path, quarantine)]
    return found


def _lies_in(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder.resolve()) and path.is_file()
