"""Finished rows on disk, a line each, so that a run that was killed goes on where it was."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock

from vlmtune.revision import hash_text

ROWS, LOCK, KEY = "rows.jsonl", ".lock", "key"
KEY_DIGITS = 16


def fingerprint(parts: dict[str, Any]) -> str:
    """16 hex digits over everything that decides what is written."""
    return hash_text(json.dumps(parts, sort_keys=True, default=str))[:KEY_DIGITS]


class Journal:
    """What has been written so far, by a key for each row; new lines are only ever added.

    It is held by one process at a time: a second one that would write the same texts waits, and
    then finds them.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / ROWS
        self.finished: dict[str, dict[str, Any]] = {}
        self._lock = FileLock(folder / LOCK)

    def __enter__(self) -> Self:
        self._lock.acquire()
        self._file = self.path.open("ab")
        records, end = whole_lines(self.path)
        self._file.truncate(end)  # a line that was torn by a kill is no line
        self.finished = {record[KEY]: record for record in records}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._lock.release()

    def add(self, records: list[dict[str, Any]]) -> None:
        """Keep finished rows; once this returns, neither a kill nor a power cut loses them."""
        lines = (json.dumps(record) + "\n" for record in records)
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.finished |= {record[KEY]: record for record in records}


def whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records up to the first line that is not whole, and the bytes that they take."""
    records, end = [], 0
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not (line.endswith(b"\n") and isinstance(record, dict) and KEY in record):
                break
            records.append(record)
            end += len(line)
    return records, end
