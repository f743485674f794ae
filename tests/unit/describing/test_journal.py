"""Finished rows are kept, whatever the file ends in."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlmtune.describing.journal import ROWS, Journal, fingerprint


def line(key: str, text: str = "A mug.") -> dict[str, str]:
    """A finished row."""
    return {"key": key, "text": text}


def test_rows_come_back(tmp_path: Path) -> None:
    """What was added is there for the next one, in any script and with line breaks."""
    texts = ["A mug.\nFor two.", "杯子 كوب 🫖", "\ud800 \u2028", ""]
    with Journal(tmp_path / "deep" / "folder") as journal:
        assert journal.finished == {}
        journal.add([line("a", texts[0]), line("b", texts[1])])
        journal.add([line("c", texts[2])])
        journal.add([line("d", texts[3])])
        assert list(journal.finished) == ["a", "b", "c", "d"]
    with Journal(tmp_path / "deep" / "folder") as journal:
        assert [row["text"] for row in journal.finished.values()] == texts


@pytest.mark.parametrize(
    "torn",
    [
        b'{"key": "b", "text": "half a li',
        b'{"key": "b", "text": "no line end"}',
        b"\x00\x00\x00\x00",
        b'{"key": "b"',
        b"7\n",
        b"[]\n",
        b'{"text": "without a key"}\n',
        b"\xff\xfe\n",
    ],
)
def test_a_torn_line_is_discarded(tmp_path: Path, torn: bytes) -> None:
    """The row is written again, on a line of its own."""
    with Journal(tmp_path) as journal:
        journal.add([line("a")])
    path = tmp_path / ROWS
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with Journal(tmp_path) as journal:
        assert set(journal.finished) == {"a"}
        journal.add([line("b", "again")])
    assert path.read_bytes() == whole + (json.dumps(line("b", "again")) + "\n").encode()


def test_rows_are_on_disk_before_the_next_ones_are_begun(tmp_path: Path) -> None:
    """Another process sees them while the journal is open."""
    with Journal(tmp_path) as journal:
        for number in range(3):
            journal.add([line(str(number))])
            assert len((tmp_path / ROWS).read_bytes().splitlines()) == number + 1


def test_one_process_at_a_time(tmp_path: Path, root: Path) -> None:
    """A second one waits, and then finds what the first has written."""
    script = (
        "import sys; from pathlib import Path; from vlmtune.describing.journal import Journal\n"
        "with Journal(Path(sys.argv[1])) as journal: print(sorted(journal.finished))"
    )
    with Journal(tmp_path) as journal:
        second = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(1)
        journal.add([line("a")])
        assert second.poll() is None
    assert second.communicate(timeout=60)[0] == "['a']\n"


def test_fingerprints_see_every_part() -> None:
    """Sixteen digits that depend on all that is given and on nothing else."""
    parts = {"model": "m", "generation": {"max_new_tokens": 8, "do_sample": False}}
    assert fingerprint(parts) == fingerprint(dict(reversed(parts.items())))
    assert len(fingerprint(parts)) == 16
    assert fingerprint(parts | {"model": "n"}) != fingerprint(parts)
