"""Large files without second copies, and folders that clean up after themselves."""

import itertools
import os
import shutil
import weakref
from pathlib import Path

from filelock import FileLock, Timeout


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name; its content is written again only where it must be."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


class ScratchFolder:
    """An empty folder that no other process uses; it goes with the last object that holds it.

    Folders are numbered, and the first that no living process holds is taken: what a killed run
    left there is removed then, and two runs at once get two folders.

    Args:
        root: where the numbered folders are made.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            # Not bound to this thread: the garbage collector may let go of it in another one.
            lock = FileLock(root / f"{number}.lock", timeout=0, thread_local=False)
            try:
                lock.acquire()
                break
            except Timeout:
                continue
        self.path = root / str(number)
        _remove(self.path)
        self.path.mkdir()
        weakref.finalize(self, _let_go, self.path, lock)


def _let_go(folder: Path, lock: FileLock) -> None:
    _remove(folder)
    lock.release()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
