"""Checkpoints of a run that was killed: only whole ones, and only of the very same training."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

COMPLETE = "complete.json"


def training_fingerprint(parts: dict[str, Any]) -> str:
    """16 hex digits over everything that decides the adapter's bits.

    Two trainings share a checkpoint folder only if they would make the same adapter.
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once all of it is on disk: a kill leaves an unmarked one behind."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after the last file of a checkpoint is written."""
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            (folder / COMPLETE).write_text(json.dumps({"step": state.global_step}))


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below a folder; half-written ones are removed."""
    complete = []
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (checkpoint / COMPLETE).is_file():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a checkpoint folder: a second run of the same training waits until this one ends."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield
