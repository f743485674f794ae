"""Downloaded pictures on disk, so that each address is fetched once."""

import hashlib
import os
import sqlite3
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vlmtune.errors import UserError

INDEX = """create table if not exists pictures (
    url text primary key, sha256 text, etag text, modified text, source text
)"""


@dataclass(frozen=True)
class KnownPicture:
    """A picture and what its server needs to know to tell whether it has changed."""

    data: bytes
    etag: str
    modified: str
    source: str  # digest of the address that the picture came from after all redirects


class PictureCache:
    """Pictures on disk by their hash, and an index of the addresses that they came from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._index = sqlite3.connect(
                folder / "index.sqlite", timeout=30.0, check_same_thread=False, isolation_level=None
            )
            self._index.execute("pragma journal_mode = wal")
            self._index.execute("pragma synchronous = normal")
            self._index.execute(INDEX)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"the folder of downloaded pictures, {folder}, cannot be used: {error}.",
                "Mend or delete it; the pictures are fetched again.",
            ) from error

    def close(self) -> None:
        self._index.close()

    def find(self, key: str) -> KnownPicture | None:
        """The picture last had from an address; None if unknown, gone or damaged."""
        query = "select sha256, etag, modified, source from pictures where url = ?"
        with self._lock:
            row = self._index.execute(query, (key,)).fetchone()
        if row is None:
            return None
        with suppress(FileNotFoundError):
            data = self._path(row[0]).read_bytes()
            if hashlib.sha256(data).hexdigest() == row[0]:
                return KnownPicture(data, *row[1:])
        return None

    def add(self, key: str, picture: KnownPicture) -> None:
        sha256 = hashlib.sha256(picture.data).hexdigest()
        self._write(self._path(sha256), picture.data)
        row = (key, sha256, picture.etag, picture.modified, picture.source)
        with self._lock:
            self._index.execute("insert or replace into pictures values (?, ?, ?, ?, ?)", row)

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def _write(self, path: Path, data: bytes) -> None:
        """The file is there in full or not at all, also when two processes write it."""
        path.parent.mkdir(exist_ok=True)
        file = tempfile.NamedTemporaryFile(dir=path.parent, delete=False)  # noqa: SIM115
        try:
            with file:
                file.write(data)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
