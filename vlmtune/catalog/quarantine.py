"""Quarantined rows with their originals: a catalog of its own, to be mended and fed back."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vlmtune.catalog.ledger import Reason

TABLE, PICTURES = "metadata.jsonl", "pictures"
EXTENSIONS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}


class QuarantineWriter:
    """Writes `metadata.jsonl`, one quarantined row a line, and the pictures that could be read.

    A line has the source's own cells as they were, and `_line`, `_row_id`, `_place`, `_reasons`
    and `_pictures` (paths below the folder). To feed mended rows back, name the folder in
    `data.more_sources` with `image: _pictures`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / PICTURES).mkdir(parents=True)
        # Half a surrogate pair, which JSON may hold, is written as the escape that it came as.
        self._table = (folder / TABLE).open("w", encoding="utf-8", errors="backslashreplace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._table.close()

    def add(
        self,
        line: int,
        place: str,
        row_id: str,
        original: str,
        reasons: list[Reason],
        pictures: list[bytes | None],
    ) -> None:
        """Write one row.

        Args:
            original: the source's cells as JSON, as `original_cells` writes them.
            pictures: encoded bytes, None for those that could not be had.
        """
        saved = [
            self._save_picture(f"{line:07d}-{number}", picture)
            for number, picture in enumerate(pictures, 1)
            if picture is not None
        ]
        record = json.loads(original) | {
            "_line": line,
            "_row_id": row_id,
            "_place": place,
            "_reasons": [reason.message for reason in reasons],
            "_pictures": saved,
        }
        self._table.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _save_picture(self, name: str, picture: bytes) -> str:
        kinds = (kind for start, kind in EXTENSIONS.items() if picture.startswith(start))
        kind = next(kinds, "bin")
        path = f"{PICTURES}/{name}.{kind}"
        (self.folder / path).write_bytes(picture)
        return path


def original_cells(cells: dict[str, Any]) -> str:
    """The source's cells as JSON; embedded bytes are left to the pictures beside it."""
    text = json.dumps(cells, ensure_ascii=False, default=_as_json)
    return text.encode(errors="backslashreplace").decode()


def _as_json(value: Any) -> str | None:
    return None if isinstance(value, bytes) else str(value)
