"""What is known of pictures: size, look and repairs, kept so that each one is decoded only once."""

import json
import logging
import os
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vlmtune.catalog.pictures import BrokenPicture, decode_with_repairs

if TYPE_CHECKING:
    from PIL.Image import Image

INSPECTION_VERSION = 1  # one more whenever this module or pictures.py finds other facts
LOOK_SIDE = 64  # what a JPEG may be decoded down to: the hash itself takes 32 x 32 pixels
BUSY_SECONDS = 60

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureFacts:
    """What one picture is like.

    Attributes:
        width, height: in pixels, upright, before any resize; 0 if it cannot be decoded.
        phash: 64-bit perceptual hash, 16 hex digits; empty if it cannot be decoded.
        colour: RGB of a 4 x 4 thumbnail, row by row, 96 hex digits; empty likewise.
        repairs: code and message of what is done to the picture when it is decoded.
        problem: why it cannot be decoded; empty if it can.
    """

    width: int = 0
    height: int = 0
    phash: str = ""
    colour: str = ""
    repairs: list[tuple[str, str]] = field(default_factory=list)
    problem: str = ""


def inspect_picture(data: bytes, background: str) -> PictureFacts:
    """Decode a picture to see what it is like.

    Args:
        data: an encoded picture; if it is none, the facts say so in `problem`.
        background: colour laid below transparent pictures, as `#rrggbb`.
    """
    try:
        decoded = decode_with_repairs(data, LOOK_SIDE, background)
    except BrokenPicture as error:
        return PictureFacts(problem=str(error))
    phash, colour = _look(decoded.image)
    return PictureFacts(decoded.width, decoded.height, phash, colour, decoded.repairs)


def _look(image: "Image") -> tuple[str, str]:
    import imagehash
    from PIL.Image import Resampling

    return str(imagehash.phash(image)), image.resize((4, 4), Resampling.BOX).tobytes().hex()


class FactsStore:
    """Facts of pictures by the sha256 of their bytes, in a file that several processes may share.

    Facts that were found by other rules (background, code, versions of Pillow and imagehash) are
    never given out.

    Args:
        path: of the sqlite file, made if missing; None keeps the facts in memory. A file that is
            no database, or a damaged one, is renamed to `.broken`, with a warning.
        background: colour laid below transparent pictures, as `#rrggbb`.
    """

    def __init__(self, path: Path | None, background: str) -> None:
        self.background = background
        self._rules = _rules(background)
        self._connection = _open(path) if path else _connect(":memory:")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def known(self, hashes: Sequence[str]) -> dict[str, PictureFacts]:
        """Facts of those pictures that the store has, by their sha256 (64 hex digits)."""
        found = self._connection.execute(
            "SELECT sha256, facts FROM pictures "
            "WHERE rules = ? AND sha256 IN (SELECT value FROM json_each(?))",
            (self._rules, json.dumps(list(hashes))),
        )
        return {digest: _from_json(facts) for digest, facts in found}

    def add(self, facts: Mapping[str, PictureFacts]) -> None:
        """Keep facts, by the sha256 of the pictures' bytes."""
        rows = [(digest, self._rules, json.dumps(asdict(each))) for digest, each in facts.items()]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?)", rows)


def inspect_pictures(
    pictures: Sequence[bytes], store: FactsStore, workers: int | None = None
) -> list[tuple[str, PictureFacts, bool]]:
    """Look up or find the facts of pictures; equal bytes are decoded once.

    Args:
        pictures: encoded pictures.
        store: gives what is known and keeps what is new, of broken pictures too.
        workers: pictures decoded at a time; None: as many as the machine has cores.

    Returns:
        A triple a picture, in order: sha256 of its bytes (64 hex digits), its facts, and whether
        it was decoded now. Of equal pictures only the first is ever decoded.
    """
    digests = [sha256(picture).hexdigest() for picture in pictures]
    facts = store.known(list(dict.fromkeys(digests)))
    new = {
        digest: picture
        for digest, picture in zip(digests, pictures, strict=True)
        if digest not in facts
    }
    with ThreadPoolExecutor(workers or os.cpu_count(), "inspect-pictures") as pool:
        found = pool.map(lambda picture: inspect_picture(picture, store.background), new.values())
        decoded = dict(zip(new, found, strict=True))
    # Lack of memory says nothing about the picture, so the next run tries again.
    store.add(
        {digest: each for digest, each in decoded.items() if "MemoryError" not in each.problem}
    )
    facts |= decoded
    return [(digest, facts[digest], new.pop(digest, None) is not None) for digest in digests]


def _rules(background: str) -> str:
    names = [each.name for each in fields(PictureFacts)]
    rules = [background.lower(), INSPECTION_VERSION, version("pillow"), version("imagehash"), names]
    return sha256(json.dumps(rules).encode()).hexdigest()[:16]


def _from_json(text: str) -> PictureFacts:
    values = json.loads(text)
    repairs = [(code, message) for code, message in values.pop("repairs")]
    return PictureFacts(**values, repairs=repairs)


def _open(path: Path) -> sqlite3.Connection:
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # one process must not move away what another has just begun
        try:
            return _connect(str(path))
        except sqlite3.OperationalError:  # locked, no space, no permission: not the file's fault
            raise
        except sqlite3.DatabaseError as error:
            _move_aside(path, error)
            return _connect(str(path))


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS pictures "
            "(sha256 TEXT, rules TEXT, facts TEXT, PRIMARY KEY (sha256, rules)) WITHOUT ROWID"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def _move_aside(path: Path, error: Exception) -> None:
    broken = path.with_name(f"{path.name}.broken")
    logger.warning("%s is no usable database (%s): renamed to %s", path, error, broken.name)
    path.replace(broken)
    for rest in ("-wal", "-shm"):
        path.with_name(path.name + rest).unlink(missing_ok=True)
