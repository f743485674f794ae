"""A checkout of its own for the end-to-end tests, with its own ZenML store and caches."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 900

# Two minutes of training are far more than these tests need to see what is cached or resumed.
SMALL = (
    "--set=data.max_rows=80",
    "--set=training.max_steps=6",
    "--set=training.save_steps=2",
    "--set=training.eval_steps=3",
    "--set=training.logging_steps=1",
    "--set=evaluation.max_rows=6",
    "--set=generation.max_new_tokens=8",
    # So little training meets no gate: only an adapter that changes nothing is kept back.
    "--set=evaluation.picture_rows=0",
    "--set=gate.min_groups=2",
    "--set=gate.floors={}",
    "--set=gate.beat_base=null",
    "--set=gate.beat_champion=null",
    "--set=gate.picture_margin=null",
    "--set=gate.max_violations=null",
)


class Checkout:
    """A copy of the project and a stranger's environment to run it in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.home = folder / "home"
        self.home.mkdir()
        listing = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in listing.stdout.splitlines():
            if (ROOT / name).is_file():
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)

    @property
    def environment(self) -> dict[str, str]:
        """A clean environment without CI's variables, tokens or a network to the Hub."""
        kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        return kept | {
            "HOME": str(self.home),
            "ZENML_CONFIG_PATH": str(self.home / "zenml"),
            "HF_HOME": str(self.home / "huggingface"),
            "HF_HUB_OFFLINE": "1",
        }

    def run(
        self, *arguments: str, code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """`python run.py ARGUMENTS`; fails the test on another exit code than expected."""
        done = subprocess.run(
            [sys.executable, "run.py", *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return done

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The same in the background, in a process group of its own, to be killed."""
        return subprocess.Popen(
            [sys.executable, "run.py", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def summary(self) -> dict[str, Any]:
        """The newest run's summary."""
        return json.loads((self.folder / "runs" / "latest" / "summary.json").read_text())

    def executed(self) -> set[str]:
        """Steps of the newest run that did not come from the cache."""
        return {name for name, step in self.summary()["steps"].items() if not step["cached"]}


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """One checkout for all end-to-end tests: they share its cache as a user's runs do."""
    folder = tmp_path_factory.mktemp("project")
    yield Checkout(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def demo(checkout: Checkout) -> dict[str, Any]:
    """The whole demo, run once as its user would; returns its summary."""
    checkout.run("--pipeline", "finetune")
    return checkout.summary()
