"""Reads a catalog: every row checked, every row accounted for.

Rows go through a few at a time, from the source into Arrow files on disk, so memory stays flat
however large the catalog is. Only what the split needs of each row (ids and picture hashes) is
held until all rows are known.
"""

import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vlmtune.arrow_file import arrow_writer, stream_rows, write_rows
from vlmtune.catalog.catalog import PICTURES, ROW_ID, Catalog, catalog_features
from vlmtune.catalog.checking import Draft, RowChecker, Sizer
from vlmtune.catalog.downloads import Downloader
from vlmtune.catalog.duplicates import PictureKey
from vlmtune.catalog.ledger import Decision, Reason, RowLedger, ledger_features
from vlmtune.catalog.picture_facts import FactsStore
from vlmtune.catalog.quarantine import QuarantineWriter, original_cells
from vlmtune.catalog.source import open_sources
from vlmtune.catalog.split import Assignment, GroupedRow, assign_sides
from vlmtune.catalog.tables import SourceRow
from vlmtune.config.data import Columns, DataConfig
from vlmtune.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

BATCH = 64  # rows whose pictures are in memory at a time
LINE, ORIGINAL = "_line", "_original"  # columns of rows that may still be quarantined
NumberedRow = tuple[int, SourceRow, Columns, tuple[Path, ...]]


@dataclass(frozen=True)
class PreviousCatalog:
    """What the split is carried on from.

    Attributes:
        id: what the ledger is known by to whoever keeps it.
    """

    catalog: Catalog
    ledger: RowLedger
    id: str = ""


def load_catalog(
    data: DataConfig,
    version: str,
    sizer: Sizer | None = None,
    work_dir: Path | None = None,
    previous: PreviousCatalog | None = None,
) -> tuple[Catalog, RowLedger]:
    """Read all rows: those that can be trained on into the catalog, each one into the ledger.

    Args:
        version: as `catalog_version` found it.
        sizer: counts tokens by the model's processor; None leaves rows unmeasured.
        work_dir: keeps downloads, and what is known of pictures, for later runs; None keeps
            nothing.
        previous: the catalog whose split is carried on.

    Raises:
        UserError: a source cannot be read, or has no rows.
    """
    scratch = tempfile.TemporaryDirectory(prefix="vlmtune-catalog-")
    folder = Path(scratch.name)
    kept = work_dir or folder / "work"
    kept.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        store = stack.enter_context(FactsStore(kept / "pictures.sqlite", data.background))
        downloader = stack.enter_context(Downloader(data.downloads, kept / "downloads"))
        quarantine = stack.enter_context(QuarantineWriter(folder / "quarantine"))
        checker = RowChecker(data, sizer, store, downloader)
        reading = _Reading(data, folder, quarantine)
        reading.add_all(_drafts(data, version, checker))
        assignments = assign_sides(
            reading.grouped, _previous_rows(previous, data), data.held_out, data.duplicates
        )
        rows, lines = reading.finish(assignments)
    ledger = RowLedger(
        lines=lines,
        quarantine=folder / "quarantine",
        catalog_name=data.catalog_name,
        catalog_version=version,
        pictures_decoded=checker.decoded,
        pictures_known=checker.known,
        previous=previous.id if previous else None,
        scratch=scratch,
    )
    _tell(ledger)
    catalog = Catalog(rows, data.source, version, background=data.background, scratch=scratch)
    return catalog, ledger


def _drafts(data: DataConfig, version: str, checker: RowChecker) -> Iterator[Draft]:
    rows = islice(_numbered_rows(data, version), data.max_rows)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    count = 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Reading the catalog", total=None)
        while batch := list(islice(rows, BATCH)):
            yield from checker.check(batch)
            count += len(batch)
            progress.update(task, description=f"Reading the catalog: {count:,} rows")
    if not count:
        raise UserError(f"the catalog {data.source} is empty.", "Add rows to its table.")


def _numbered_rows(data: DataConfig, version: str) -> Iterator[NumberedRow]:
    number = 0
    for source in open_sources(data, version):
        for row in source.rows:
            number += 1
            yield number, row, source.columns, source.folders


class _Reading:
    """Collects checked rows: candidates for the catalog, lines of the ledger, the quarantine."""

    def __init__(self, data: DataConfig, folder: Path, quarantine: QuarantineWriter) -> None:
        self.data = data
        self.folder = folder
        self.quarantine = quarantine
        self.grouped: list[GroupedRow] = []
        self.rows_read = 0
        self._ids: Counter[str] = Counter()

    def add_all(self, drafts: Iterable[Draft]) -> None:
        """Write each row where it belongs, as far as that is known yet."""
        from datasets import Value

        features = catalog_features(self.data.texts)
        features |= {LINE: Value("int32"), ORIGINAL: Value("large_string")}
        with (
            arrow_writer(self.folder / "candidates.arrow", features) as rows,
            arrow_writer(self.folder / "drafts.arrow", ledger_features()) as lines,
        ):
            for draft in drafts:
                self.rows_read += 1
                row_id = self._unique_id(draft.identity)
                lines.write(draft.ledger_line(row_id).record())
                if draft.problems:
                    self.quarantine.add(
                        draft.number,
                        draft.place,
                        row_id,
                        original_cells(draft.original),
                        draft.problems,
                        draft.pictures,
                    )
                else:
                    rows.write(_candidate(draft, row_id))
                    self.grouped.append(self._grouped(draft, row_id))

    def _unique_id(self, identity: str) -> str:
        """Equal rows stay apart: the second one gets `-2`, and so on."""
        self._ids[identity] += 1
        again = self._ids[identity]
        return identity if again == 1 else f"{identity}-{again}"

    def _grouped(self, draft: Draft, row_id: str) -> GroupedRow:
        by = self.data.held_out.by
        keys = tuple(PictureKey(each.sha256, each.phash, each.colour) for each in draft.lines)
        return _grouped_row(row_id, draft.fields[by] if by else "", keys)

    def finish(self, assignments: list[Assignment]) -> "tuple[Dataset, Dataset]":
        """Tell each row its side; a row that would leak is quarantined after all.

        Returns:
            The catalog's rows and the ledger's lines.
        """
        from datasets import Dataset

        candidates = Dataset.from_file(str(self.folder / "candidates.arrow"))
        decided = self._decided_lines(assignments, candidates)
        lines = write_rows(self.folder / "ledger.arrow", ledger_features(), decided)
        if len(lines) != self.rows_read:
            raise RuntimeError(f"{self.rows_read} rows were read, the ledger has {len(lines)}")
        rows = candidates.remove_columns([LINE, ORIGINAL])
        usable = [number for number, each in enumerate(assignments) if not each.conflict]
        if len(usable) < len(rows):
            rows = rows.select(usable)
        return rows, lines

    def _decided_lines(
        self, assignments: list[Assignment], candidates: "Dataset"
    ) -> Iterator[dict[str, Any]]:
        numbers = {row.row_id: number for number, row in enumerate(self.grouped)}
        for line in stream_rows(self.folder / "drafts.arrow"):
            number = numbers.get(line[ROW_ID])
            if number is None:  # it is in quarantine already
                yield line
                continue
            if assignments[number].conflict:
                self._quarantine_late(candidates[number], line["place"], assignments[number])
            yield _with_side(line, assignments[number])

    def _quarantine_late(self, row: dict[str, Any], place: str, assignment: Assignment) -> None:
        self.quarantine.add(
            row[LINE],
            place,
            row[ROW_ID],
            row[ORIGINAL],
            [_conflict(assignment)],
            [picture["bytes"] for picture in row[PICTURES]],
        )


def _grouped_row(
    row_id: str, product: str, pictures: tuple[PictureKey, ...], side: str = ""
) -> GroupedRow:
    """Products are the same whatever their case and white space."""
    return GroupedRow(row_id, " ".join(product.casefold().split()), pictures, side, product)


def _candidate(draft: Draft, row_id: str) -> dict[str, Any]:
    pictures = [
        {"bytes": data, "path": line.name}
        for data, line in zip(draft.pictures, draft.lines, strict=True)
    ]
    own = {LINE: draft.number, ORIGINAL: original_cells(draft.original)}
    return {ROW_ID: row_id, PICTURES: pictures, **draft.fields, **own}


def _with_side(line: dict[str, Any], assignment: Assignment) -> dict[str, Any]:
    if assignment.conflict:
        reason = _conflict(assignment)
        reasons = [{"code": reason.code, "message": reason.message, "field": reason.field}]
        return line | {"decision": Decision.QUARANTINED, "reasons": reasons + line["reasons"]}
    return line | {
        "group": assignment.group,
        "side": assignment.side,
        "carried": assignment.carried,
    }


def _conflict(assignment: Assignment) -> Reason:
    return Reason("split_conflict", assignment.conflict)


def _previous_rows(previous: PreviousCatalog | None, data: DataConfig) -> list[GroupedRow]:
    """The rows of the previous catalog with their sides, as the split looks at them."""
    if previous is None:
        return []
    texts, by = previous.catalog.texts(), data.held_out.by
    products: dict[str, str] = {}
    if by in texts.column_names:
        products = dict(zip(texts[ROW_ID], texts[by], strict=True))
    lines = previous.ledger.lines.select_columns([ROW_ID, "pictures", "side"])
    return [
        _grouped_row(
            line[ROW_ID],
            products.get(line[ROW_ID], ""),
            tuple(
                PictureKey(each["sha256"], each["phash"], each["colour"])
                for each in line["pictures"]
            ),
            line["side"],
        )
        for line in lines
        if line["side"]
    ]


def _tell(ledger: RowLedger) -> None:
    counts = ledger.counts
    logger.info(
        "%d rows read: %d kept, %d repaired, %d quarantined; %d pictures decoded, %d known before",
        counts["rows_read"],
        counts["kept"],
        counts["repaired"],
        counts["quarantined"],
        ledger.pictures_decoded,
        ledger.pictures_known,
    )
