"""Checkpoints of a run that was killed: only whole ones, and only of the very same training."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

CHECKPOINT_PREFIX = "checkpoint"  # transformers' PREFIX_CHECKPOINT_DIR
COMPLETE = "complete.json"
FINISHED = "finished.json"


def training_fingerprint(parts: dict[str, Any]) -> str:
    """16 hex digits over everything that decides the adapter's bits.

    Two trainings share a checkpoint folder only if they would make the same adapter.
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mark_complete(checkpoint: Path, step: int) -> None:
    """Mark a checkpoint once all of it is on disk: a kill leaves an unmarked one behind."""
    (checkpoint / COMPLETE).write_text(json.dumps({"step": step}))


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below a folder; half-written ones are removed."""
    complete = []
    for checkpoint in folder.glob(f"{CHECKPOINT_PREFIX}-*"):
        if (checkpoint / COMPLETE).is_file():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


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
    (folder / FINISHED).write_text(json.dumps({"run": run}))


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
