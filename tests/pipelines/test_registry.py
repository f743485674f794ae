"""The registry from end to end: runs at once, a person in between, a database that is gone.

python -m pytest -m slow tests/pipelines/test_registry.py
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer
from tests.pipelines.conftest import SMALL, TIMEOUT, Checkout
from tests.unit.tracking.test_registry import database as database

pytestmark = pytest.mark.slow
FINETUNE = ("--pipeline", "finetune", *SMALL)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout whose stores nobody has used yet."""
    folder = tmp_path_factory.mktemp("registry")
    yield Checkout(folder)
    shutil.rmtree(folder, ignore_errors=True)


def start(shop: Checkout, *options: str, **environment: str) -> subprocess.Popen[str]:
    """A run in the background that says what it does."""
    return subprocess.Popen(
        [sys.executable, "run.py", *FINETUNE, *options],
        cwd=shop.folder,
        env=shop.environment | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def at_once(shop: Checkout) -> list[str]:
    """What two first-ever runs at once printed."""
    runs = [start(shop, f"--set=seed={seed}") for seed in (1, 2)]
    told = [run.communicate(timeout=TIMEOUT)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(text[-4000:] for text in told)
    return told


def champion(shop: Checkout) -> str | None:
    """Number of the version that is live."""
    lines = shop.run("versions").stdout.splitlines()
    live = [line.split()[1] for line in lines if "champion" in line]
    return live[0].removeprefix("v") if live else None


def one_line(text: str) -> str:
    """Without the line breaks of a narrow terminal."""
    return " ".join(text.split())


def test_two_first_ever_runs_at_once(shop: Checkout, at_once: list[str]) -> None:
    """Both end well on fresh stores; both were judged against no champion, so one is it, and the
    other says that it stays challenger."""
    live = champion(shop)
    assert live in ("1", "2")
    loser = {"1": "2", "2": "1"}[live]
    said = f"but v{loser} stays challenger: the champion is v{live} now, it was judged against no"
    assert sum(f"Gate: promoted, {said}" in one_line(text) for text in at_once) == 1
    assert sum("stays challenger" in text for text in at_once) == 1


def test_a_promotion_by_hand_during_a_run(shop: Checkout, at_once: list[str]) -> None:
    """What the person wanted stays; the run pushes nothing, and says so in its summary."""
    before = champion(shop)
    other = "2" if before == "1" else "1"
    known = set((shop.folder / "runs").iterdir())
    with HubServer() as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HUB_OFFLINE": "0"}
        run = start(shop, "--set=seed=3", "--set=hub.repo_id=shop/words", **environment)
        deadline = time.monotonic() + TIMEOUT
        while set((shop.folder / "runs").iterdir()) == known:  # it has looked up the champion then
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        shop.run("promote", other, "--why", "the spring range")
        told = run.communicate(timeout=TIMEOUT)[0]
        assert run.returncode == 0, told[-4000:]
        assert not hub.repos
    said = f"v3 stays challenger: the champion is v{other} now, it was judged against v{before}"
    assert f"Gate: promoted, but {said}" in one_line(told) and champion(shop) == other
    summary = shop.summary()
    assert summary["registry"]["version"] == "3" and summary["registry"]["champion"] == other
    assert not summary["registry"]["live"] and said in summary["registry"]["said"]
    assert said in summary["publication"]["reason"] and not summary["publication"]["repos"]


def test_a_database_that_is_gone(shop: Checkout, at_once: list[str], database: Path) -> None:
    """Deleted, or replaced by another one: the same command registers the version again, from the
    cache; where it is known already, nothing runs."""
    (used,) = (shop.home / "zenml").rglob("mlflow.db")
    options = ("--set=seed=4", "--set=data.max_rows=60")
    used.unlink()
    first = run(shop, *options)
    for replace in (used.unlink, lambda: shutil.copy(database, used)):
        replace()
        again = run(shop, *options)
        assert shop.executed() == {"push_to_hub"}
        assert again["adapter_hash"] == first["adapter_hash"]
        assert again["registry"]["said"] == "v1 is the champion" and champion(shop) == "1"
        run(shop, *options)
        assert shop.executed() == set()
    print("databases deleted and replaced: 2, noticed: 2")


def run(shop: Checkout, *options: str) -> dict[str, Any]:
    """Run the pipeline; returns its summary."""
    shop.run(*FINETUNE, *options)
    return shop.summary()
