"""Reads a catalog: every row checked, every row accounted for.

Rows go through a few at a time, from the source into Arrow files on disk, so memory stays flat
however large the catalog is. Only what the split needs of each row (ids, and hashes of
pictures and descriptions) is held until all rows are known.
"""

import hashlib
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vlmtune.arrow_file import arrow_writer, stream_rows, write_rows
from vlmtune.catalog.catalog import PICTURES, ROW_ID, Catalog, catalog_features
from vlmtune.catalog.catalog_reader import first_text, product_of, read_columns, read_products
from vlmtune.catalog.checking import Draft, RowChecker, Sizer
from vlmtune.catalog.descriptions import DescriptionKey, description_key
from vlmtune.catalog.downloads import Downloader
from vlmtune.catalog.duplicates import PictureKey
from vlmtune.catalog.ledger import Decision, Reason, RowLedger, SharedValue, ledger_features
from vlmtune.catalog.picture_facts import FactsStore
from vlmtune.catalog.quarantine import QuarantineWriter, original_cells
from vlmtune.catalog.source import open_sources
from vlmtune.catalog.split import Assignment, GroupedRow, split_rows
from vlmtune.catalog.tables import SourceRow
from vlmtune.config.data import DESCRIPTION, PICTURE, Columns, DataConfig
from vlmtune.errors import UserError
from vlmtune.pages import shorten

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

LONGEST_LABEL = 60  # characters of what rows share
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
    prompt_fields: Sequence[str] | None = None,
) -> tuple[Catalog, RowLedger]:
    """Read all rows: those that can be trained on into the catalog, each one into the ledger.

    Args:
        version: as `catalog_version` found it.
        sizer: counts tokens by the model's processor; None leaves rows unmeasured.
        work_dir: keeps downloads, and what is known of pictures, for later runs; None keeps
            nothing.
        previous: the catalog whose split is carried on.
        prompt_fields: fields that the prompt names: rows of equal images, prompt and description
            are copies, and count once. None: all fields. Rows that are yet to be described are no
            copies of each other: each of them gets its description.

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
        reading = _Reading(data, prompt_fields, folder, quarantine)
        reading.add_all(_drafts(data, version, checker))
        before = list(_previous_rows(previous, data)) if previous else []
        split = split_rows(reading.grouped, before, data.held_out, data.duplicates)
        rows, lines = reading.finish(split.assignments)
        shared = reading.labelled(split.shared)
    ledger = RowLedger(
        lines=lines,
        quarantine=folder / "quarantine",
        catalog_name=data.catalog_name,
        catalog_version=version,
        pictures_decoded=checker.decoded,
        pictures_known=checker.known,
        previous=previous.id if previous else None,
        shared=shared,
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

    def __init__(
        self,
        data: DataConfig,
        prompt_fields: Sequence[str] | None,
        folder: Path,
        quarantine: QuarantineWriter,
    ) -> None:
        self.data = data
        self.prompt_fields = data.texts if prompt_fields is None else prompt_fields
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
        product = first_text(draft.fields[field] for field in self.data.held_out.fields)
        name = product_of(draft.name)
        return GroupedRow(
            row_id,
            product_of(product),
            _picture_keys(asdict(line) for line in draft.lines),
            product_key=product,
            description=description_key(draft.fields.get(DESCRIPTION, ""), self.data.duplicates),
            name=hashlib.blake2b(name.encode(), digest_size=8).digest() if name else b"",
            content=draft.content(self.prompt_fields) if self.data.described else b"",
        )

    def finish(self, assignments: list[Assignment]) -> "tuple[Dataset, Dataset]":
        """Tell each row its side; a row that would leak is quarantined after all, and a copy is
        left out.

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
        usable = [number for number, each in enumerate(assignments) if each.side]
        if len(usable) < len(rows):
            rows = rows.select(usable)
        return rows, lines

    def _decided_lines(
        self, assignments: list[Assignment], candidates: "Dataset"
    ) -> Iterator[dict[str, Any]]:
        numbers = {row.row_id: number for number, row in enumerate(self.grouped)}
        places = self._places({each.copy_of for each in assignments} - {""})
        for line in stream_rows(self.folder / "drafts.arrow"):
            number = numbers.get(line[ROW_ID])
            if number is None:  # it is in quarantine already
                yield line
                continue
            assignment = assignments[number]
            if assignment.conflict:
                self._quarantine_late(candidates[number], line["place"], assignment)
            yield _with_side(line, assignment, places.get(assignment.copy_of, ""))

    def _places(self, row_ids: set[str]) -> dict[str, str]:
        """Row id -> where the row stands."""
        lines = stream_rows(self.folder / "drafts.arrow") if row_ids else iter(())
        return {line[ROW_ID]: line["place"] for line in lines if line[ROW_ID] in row_ids}

    def labelled(self, shared: list[SharedValue]) -> list[SharedValue]:
        """The same with labels for people."""
        from datasets import Dataset

        candidates = Dataset.from_file(str(self.folder / "candidates.arrow"))
        numbers = {row.row_id: number for number, row in enumerate(self.grouped)}

        def label(value: SharedValue) -> str:
            number = numbers[value.row_id]
            if value.kind == DESCRIPTION:
                return candidates[number][DESCRIPTION]
            if value.kind == PICTURE:
                hashes = [picture.sha256 for picture in self.grouped[number].pictures]
                picture = candidates[number][PICTURES][hashes.index(value.label)]
                return picture["path"] or f"of row {value.row_id}"
            return value.label

        return [replace(value, label=shorten(label(value), LONGEST_LABEL)) for value in shared]

    def _quarantine_late(self, row: dict[str, Any], place: str, assignment: Assignment) -> None:
        self.quarantine.add(
            row[LINE],
            place,
            row[ROW_ID],
            row[ORIGINAL],
            [_conflict(assignment)],
            [picture["bytes"] for picture in row[PICTURES]],
        )


def _picture_keys(pictures: Iterable[dict[str, Any]]) -> tuple[PictureKey, ...]:
    return tuple(PictureKey(each["sha256"], each["phash"], each["colour"]) for each in pictures)


def _candidate(draft: Draft, row_id: str) -> dict[str, Any]:
    pictures = [
        {"bytes": data, "path": line.name}
        for data, line in zip(draft.pictures, draft.lines, strict=True)
    ]
    own = {LINE: draft.number, ORIGINAL: original_cells(draft.original)}
    return {ROW_ID: row_id, PICTURES: pictures, **draft.fields, **own}


def _with_side(line: dict[str, Any], assignment: Assignment, original: str) -> dict[str, Any]:
    """The line with its decision; `original` is where the row stands that it is a copy of."""
    if assignment.side:
        own = ("group", "side", "carried", "shared_with_train")
        return line | {name: getattr(assignment, name) for name in own}
    if assignment.copy_of:
        message = f"the images, the prompt and the description are those of {original}"
        decision, reason = (
            Decision.DUPLICATE,
            Reason("exact_copy", f"{message} ({assignment.copy_of})"),
        )
    else:
        decision, reason = Decision.QUARANTINED, _conflict(assignment)
    reasons = [asdict(reason), *line["reasons"]]
    return line | {"decision": decision, "reasons": reasons, "copy_of": assignment.copy_of}


def _conflict(assignment: Assignment) -> Reason:
    return Reason("split_conflict", assignment.conflict)


def _previous_rows(previous: PreviousCatalog, data: DataConfig) -> Iterator[GroupedRow]:
    """The rows of the previous catalog with their sides, as the split looks at them."""
    rows, lines = previous.catalog.rows, previous.ledger.lines
    fields = [field for field in data.held_out.fields if field in rows.column_names]
    products = {row_id: product for row_id, product in read_products(rows, fields) if product}
    descriptions: dict[str, DescriptionKey | None] = {}
    if DESCRIPTION in rows.column_names:
        for row_id, text in read_columns(rows, ROW_ID, DESCRIPTION):
            descriptions[row_id] = description_key(text or "", data.duplicates)
    # A ledger of an earlier version says nothing of what is shared.
    marks = [name for name in ("shared_with_train",) if name in lines.column_names]
    for row_id, pictures, side, *shared in read_columns(lines, ROW_ID, "pictures", "side", *marks):
        if side:
            product = products.get(row_id, "")
            yield GroupedRow(
                row_id,
                product_of(product),
                _picture_keys(pictures),
                side,
                product,
                descriptions.get(row_id),
                shared_with_train="".join(shared),
            )


def _tell(ledger: RowLedger) -> None:
    counts = ledger.counts
    logger.info(
        "%d rows read: %d kept, %d repaired, %d quarantined, %d duplicate; "
        "%d pictures decoded, %d known before",
        *(counts[name] for name in ("rows_read", *Decision)),
        ledger.pictures_decoded,
        ledger.pictures_known,
    )
    logger.info(
        "of %d held-out rows %d share a description and %d an image with training rows",
        *(counts[name] for name in ("held_out", "held_out_sharing_description")),
        counts["held_out_sharing_image"],
    )
    for value in ledger.shared:
        if not value.ties:
            logger.warning(
                "%s says little about any one product and ties no rows; %d held-out rows have it",
                value,
                value.held_out,
            )
