"""Files get second names instead of copies, and scratch folders leave nothing behind."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmtune.files import ScratchFolder, link_or_copy


def test_a_file_is_linked(tmp_path: Path) -> None:
    """On one disk the content is there once."""
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("x")
    link_or_copy(source, target)
    assert source.samefile(target)


def test_without_links_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As between two disks."""

    def other_disk(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("x")
    link_or_copy(source, target)
    assert target.read_text() == "x" and not source.samefile(target)


def test_a_scratch_folder_goes_with_its_last_holder(tmp_path: Path) -> None:
    """Not with the first; the next one takes its place."""
    first = ScratchFolder(tmp_path)
    also = [first]
    path = first.path
    (path / "weights").write_text("large")
    del first
    gc.collect()
    assert path.exists()
    also.clear()
    gc.collect()
    assert not path.exists()
    assert ScratchFolder(tmp_path).path == path


def test_two_at_once_are_two_folders(tmp_path: Path) -> None:
    """Neither is emptied by the other."""
    first = ScratchFolder(tmp_path)
    (first.path / "weights").write_text("large")
    second = ScratchFolder(tmp_path)
    assert first.path != second.path
    assert list(first.path.iterdir()) and not list(second.path.iterdir())


KILLED = """
import os, sys
from pathlib import Path
from vlmtune.files import ScratchFolder
scratch = ScratchFolder(Path(sys.argv[1]))
(scratch.path / "weights").write_text("large")
os._exit(0)
"""


def test_what_a_killed_process_left_is_removed(
    tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    """The folder is free again, and empty."""
    assert run_python("-c", KILLED, str(tmp_path)).returncode == 0
    (left,) = tmp_path.glob("*/weights")
    scratch = ScratchFolder(tmp_path)
    assert scratch.path == left.parent and not left.exists()
