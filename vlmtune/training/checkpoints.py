"""Checkpoints of a run that was killed: only whole ones, and only of the very same training."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vlmtune.manifest import first_difference, render_manifest
from vlmtune.revision import hash_files

logger = logging.getLogger(__name__)

CHECKPOINT_PREFIX = "checkpoint"  # transformers' PREFIX_CHECKPOINT_DIR
COMPLETE = "complete.json"
FINISHED = "finished.json"


def training_fingerprint(parts: dict[str, Any]) -> str:
    """16 hex digits over everything that decides the adapter's bits.

    Two trainings share a checkpoint folder only if they would make the same adapter.
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mark_complete(folder: Path) -> None:
    """Mark a folder once all of it is on disk, with the SHA-256 of each file: a kill or a power
    cut leaves an unmarked folder behind."""
    digests = hash_files(folder)
    for path in [*folder.rglob("*"), folder, folder.parent]:
        _reach_the_disk(path)
    _write_at_once(folder / COMPLETE, render_manifest(digests))


def is_whole(folder: Path) -> bool:
    """Whether a folder is marked, and its files are those that were marked. The log names a file
    that is not."""
    if not (folder / COMPLETE).is_file():
        return False
    difference = first_difference(folder, COMPLETE)
    if difference:
        logger.warning("%s in %s is damaged: it is not used.", difference[0], folder)
    return difference is None


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below a folder; newer ones, half-written or damaged, are
    removed."""
    checkpoints = sorted(
        folder.glob(f"{CHECKPOINT_PREFIX}-*"), key=lambda path: int(path.name.rpartition("-")[2])
    )
    for checkpoint in reversed(checkpoints):
        if is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _write_at_once(path: Path, text: str) -> None:
    """Write a file so that even after a power cut it is whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    _reach_the_disk(temporary)
    temporary.replace(path)
    _reach_the_disk(path.parent)


def _reach_the_disk(path: Path) -> None:
    """Wait until a file or the names in a folder have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a checkpoint folder: a second run of the same training waits until this one ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def mark_finished(folder: Path, run: str) -> None:
    """Mark a training whose adapter is whole with the run that finished it. Its checkpoints are
    kept until the adapter is safe in the artifact store: a disk that fills up in between loses
    nothing."""
    _write_at_once(folder / FINISHED, json.dumps({"run": run}))


def remove_finished(root: Path, run: str) -> None:
    """Remove the checkpoints of trainings that a run has finished, so that the next one starts
    anew. What another run has finished stays: it may be about to store its adapter."""
    for marker in root.glob(f"*/{FINISHED}"):
        if _finished_by(marker) != run:
            continue
        try:
            with FileLock(marker.parent / ".lock", timeout=0):
                shutil.rmtree(marker.parent, ignore_errors=True)
        except Timeout:
            continue  # another run is just going on from there


def _finished_by(marker: Path) -> str | None:
    """The run that a marker names; None if its own run is writing or removing it just now."""
    try:
        return str(json.loads(marker.read_text())["run"])
    except (FileNotFoundError, json.JSONDecodeError):
        return None
