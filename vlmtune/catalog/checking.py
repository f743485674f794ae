"""From a row of the source to a line of the ledger: cleaned, looked at, measured, judged."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vlmtune.catalog.columns import PictureReference, read_pictures, read_text
from vlmtune.catalog.contract import Contract
from vlmtune.catalog.downloads import Downloader
from vlmtune.catalog.languages import detect_language
from vlmtune.catalog.ledger import Decision, LedgerLine, PictureLine, Reason
from vlmtune.catalog.picture_facts import FactsStore, PictureFacts, inspect_pictures
from vlmtune.catalog.picture_files import PictureProblem, picture_name, read_picture
from vlmtune.catalog.tables import SourceRow
from vlmtune.catalog.texts import clean_text
from vlmtune.config.data import DESCRIPTION, PICTURE, Columns, DataConfig

LABEL_FIELDS = ("name", "title", "product")
LONGEST_LABEL = 120


class Measured(NamedTuple):
    """A picture's tokens, and its size after the processor's resize."""

    tokens: int
    width: int
    height: int


class Sizer(Protocol):
    """Counts tokens by the processor of the model that is to be trained."""

    max_tokens: int

    def control_token(self, text: str) -> str | None:
        """A control token of the chat format that the text holds."""

    def text_tokens(self, rows: Sequence[tuple[dict[str, str], int]]) -> list[int]:
        """Tokens of each row, pictures counted as one placeholder each."""

    def picture(self, width: int, height: int) -> Any:
        """`Measured` of a picture of this size; raises ValueError if it cannot be taken."""


@dataclass
class Draft:
    """A row on its way into the ledger.

    Attributes:
        original: the source's cells, as they were.
        fields: texts of the row, cleaned.
        raw: the same as the source has them.
        references, folders: what the row names as pictures, and where they must lie.
        pictures: encoded bytes of those that could be read, None for the others.
        lines: what the ledger says of each picture.
    """

    number: int
    place: str
    original: dict[str, Any]
    fields: dict[str, str] = field(default_factory=dict)
    raw: dict[str, str] = field(default_factory=dict)
    references: list[PictureReference] = field(default_factory=list)
    folders: Sequence[Path] = ()
    pictures: list[bytes | None] = field(default_factory=list)
    lines: list[PictureLine] = field(default_factory=list)
    repairs: list[Reason] = field(default_factory=list)
    problems: list[Reason] = field(default_factory=list)
    language: str = ""
    tokens: int = 0

    @property
    def decision(self) -> Decision:
        """Any problem quarantines the row."""
        if self.problems:
            return Decision.QUARANTINED
        return Decision.REPAIRED if self.repairs else Decision.KEPT

    @property
    def name(self) -> str:
        """What tells the product from others by the texts; empty if no field is called so."""
        return next((self.fields[name] for name in LABEL_FIELDS if self.fields.get(name)), "")

    @property
    def label(self) -> str:
        """What to call the row in front of people."""
        shown = [self.name] if self.name else []
        shown += [text for name, text in self.fields.items() if text and name != DESCRIPTION]
        shown += [cell for cell in self.original.values() if isinstance(cell, str) and cell.strip()]
        return (shown or [self.place])[0][:LONGEST_LABEL]

    @property
    def identity(self) -> str:
        """16 hex digits from pictures and fields (not the description: that may be edited)."""
        digest = hashlib.sha256()
        for picture in self.lines:
            digest.update((picture.sha256 or picture.name).encode())
        texts = {name: text for name, text in self.raw.items() if name != DESCRIPTION}
        for name, text in sorted((texts if self.raw else self.original).items()):
            digest.update(f"\0{name}={text}".encode(errors="surrogatepass"))
        return digest.hexdigest()[:16]

    def content(self, prompt_fields: Sequence[str]) -> bytes:
        """16 bytes from all that training sees of the row: images, prompt and description."""
        digest = hashlib.blake2b(digest_size=16)
        seen = [line.sha256 for line in self.lines]
        seen += [self.fields.get(name, "") for name in (*prompt_fields, DESCRIPTION)]
        digest.update(json.dumps([len(self.lines), *seen]).encode())
        return digest.digest()

    def ledger_line(self, row_id: str) -> LedgerLine:
        """What the ledger says of the row; its side is decided when all rows are known."""
        texts = json.dumps(self.fields, sort_keys=True).encode()
        return LedgerLine(
            line=self.number,
            place=self.place,
            row_id=row_id,
            label=self.label,
            decision=self.decision,
            reasons=[*self.problems, *self.repairs],
            pictures=self.lines,
            text_hash=hashlib.sha256(texts).hexdigest()[:16],
            language=self.language,
            characters=len(self.fields.get(DESCRIPTION, "")),
            tokens=self.tokens,
        )


class RowChecker:
    """Checks rows a batch at a time; nothing of a batch is kept.

    Args:
        sizer: counts tokens; None leaves them uncounted.
        store: what is known of pictures from earlier readings.
    """

    def __init__(
        self, data: DataConfig, sizer: Sizer | None, store: FactsStore, downloader: Downloader
    ) -> None:
        self.data = data
        self.sizer = sizer
        self.store = store
        self.downloader = downloader
        self.contract = Contract(data.row_contract, data.columns)
        self.decoded = self.known = 0
        self._readers = ThreadPoolExecutor(data.downloads.workers, "read-pictures")

    def check(self, rows: Sequence[tuple[int, SourceRow, Columns, Sequence[Path]]]) -> list[Draft]:
        """Judge rows.

        Args:
            rows: number, row, columns of its source and folders of its pictures.
        """
        drafts = [self._read_cells(*row) for row in rows]
        self._read_pictures(drafts)
        self._inspect_pictures(drafts)
        for draft in drafts:
            if draft.raw:
                self._hold_to_contract(draft)
        self._measure([draft for draft in drafts if not draft.problems])
        return drafts

    # Texts

    def _read_cells(
        self, number: int, row: SourceRow, columns: Columns, folders: Sequence[Path]
    ) -> Draft:
        draft = Draft(number, row.place, row.cells, folders=folders)
        if row.broken:
            draft.problems.append(row.broken)
            return draft
        for name in self.data.texts:
            draft.raw[name] = read_text(row.cells, str(columns[name]))
            cleaned = clean_text(draft.raw[name])
            draft.fields[name] = cleaned.text
            draft.repairs += [Reason(code, message, name) for code, message in cleaned.repairs]
        draft.language = detect_language(draft.fields.get(DESCRIPTION, ""))
        draft.references = read_pictures(row.cells, columns, self.data.picture_separator)
        return draft

    def _hold_to_contract(self, draft: Draft) -> None:
        draft.problems += self.contract.text_problems(draft.fields, draft.language)
        sizes = [(line.width, line.height) for line in draft.lines if line.width]
        draft.problems += self.contract.picture_problems(sizes)
        for name, text in draft.fields.items():
            token = self.sizer.control_token(text) if self.sizer else None
            if token:
                column = self.data.columns[name]
                message = f"the column {column!r} holds {token!r}, a control token of the model"
                draft.problems.append(Reason("control_token", message, name))

    # Pictures

    def _read_pictures(self, drafts: list[Draft]) -> None:
        wanted = [(draft, each) for draft in drafts for each in draft.references]
        read = self._readers.map(lambda entry: self._read(*entry), wanted)
        for (draft, reference), (picture, reason) in zip(wanted, read, strict=True):
            draft.pictures.append(picture)
            draft.lines.append(PictureLine(name=picture_name(reference)))
            draft.problems += [reason] if reason else []
        for draft in drafts:
            if draft.raw and not draft.references:
                column = self.data.columns[PICTURE]
                message = f"the column {column!r} is empty, a picture is expected"
                draft.problems.append(Reason("missing_picture", message, PICTURE))

    def _read(
        self, draft: Draft, reference: PictureReference
    ) -> tuple[bytes | None, Reason | None]:
        try:
            return read_picture(reference, draft.folders, self.downloader), None
        except PictureProblem as problem:
            return None, Reason(problem.code, str(problem), PICTURE)

    def _inspect_pictures(self, drafts: list[Draft]) -> None:
        found = [
            (draft, number, picture)
            for draft in drafts
            for number, picture in enumerate(draft.pictures)
            if picture is not None
        ]
        inspected = inspect_pictures([picture for _, _, picture in found], self.store)
        for (draft, number, _), (sha256, facts, newly) in zip(found, inspected, strict=True):
            self.decoded += newly
            self.known += not newly
            self._note_facts(draft, number, sha256, facts)

    def _note_facts(self, draft: Draft, number: int, sha256: str, facts: PictureFacts) -> None:
        name = draft.lines[number].name
        resized = Measured(0, 0, 0)
        if facts.problem:
            message = f"picture {name or number + 1}: {facts.problem}"
            draft.problems.append(Reason("picture_unreadable", message, PICTURE))
        elif self.sizer:
            try:
                resized = Measured(*self.sizer.picture(facts.width, facts.height))
            except ValueError as error:
                size = f"{facts.width} x {facts.height} pixels"
                message = f"picture {name or number + 1}, {size}: the model's processor: {error}"
                draft.problems.append(Reason("processor_refused", message, PICTURE))
        draft.repairs += [Reason(code, message, PICTURE) for code, message in facts.repairs]
        draft.lines[number] = PictureLine(
            name=name,
            sha256=sha256,
            phash=facts.phash,
            colour=facts.colour,
            width=facts.width,
            height=facts.height,
            resized_width=resized.width,
            resized_height=resized.height,
            tokens=resized.tokens,
        )

    # Tokens

    def _measure(self, drafts: list[Draft]) -> None:
        """Overlong rows are decided on here and never cut: their pictures are already as small
        as the processor, with the config's `model.max_pixels`, makes them."""
        if not self.sizer or not drafts:
            return
        counts = self.sizer.text_tokens([(each.fields, len(each.lines)) for each in drafts])
        for draft, texts in zip(drafts, counts, strict=True):
            pictures = sum(line.tokens for line in draft.lines)
            draft.tokens = texts - len(draft.lines) + pictures
            if draft.tokens > self.sizer.max_tokens:
                message = (
                    f"{draft.tokens:,} tokens ({pictures:,} of them of pictures), at most "
                    f"{self.sizer.max_tokens:,} fit; lower model.max_pixels or shorten the text"
                )
                draft.problems.append(Reason("too_many_tokens", message))
