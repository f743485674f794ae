"""The lock: everything pinned by hash, nothing tied to an index's address."""

import re
import tomllib
from pathlib import Path

import pytest

PINNED = re.compile(r"^([a-z0-9._-]+)(?:\[[a-z0-9,_-]+\])?==\S+", re.MULTILINE | re.IGNORECASE)


@pytest.fixture
def lock(root: Path) -> str:
    """The text of requirements.lock."""
    return (root / "requirements.lock").read_text()


def normal(name: str) -> str:
    """A package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_has_hashes(lock: str) -> None:
    """pip and uv refuse a file that was changed on the way."""
    entries = re.split(r"\n(?=\S)", lock.strip())
    assert len(entries) > 150
    for entry in entries:
        assert PINNED.match(entry) and "--hash=sha256:" in entry, entry[:80]


def test_no_address(lock: str) -> None:
    """Whoever installs decides which index serves the packages."""
    assert "://" not in lock and "--index" not in lock and "--find-links" not in lock


def test_everything_declared_is_locked(lock: str, root: Path) -> None:
    """`make lock` was run after the last change of pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {normal(re.split(r"[\[<>=! ]", entry)[0]) for entry in declared}
    locked = {normal(name) for name in PINNED.findall(lock)}
    assert names - locked == set()
