"""What code and which packages a run was made with."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict

PROJECT_ROOT = Path(__file__).resolve().parents[2]
REPORTED_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "zenml",
    "mlflow",
)


class Provenance(BaseModel):
    """Code and packages of a run.

    Attributes:
        code_commit: git commit; with the suffix "+changes" if the work tree differs from it;
            None outside a git checkout.
        lock_hash: SHA-256 of requirements.lock; None where there is none.
        versions: package -> version.
        python: version of the interpreter.
    """

    model_config = ConfigDict(frozen=True)

    code_commit: str | None
    lock_hash: str | None
    versions: dict[str, str]
    python: str


def find_provenance() -> Provenance:
    """Look at the checkout and the environment this process runs in."""
    return Provenance(
        code_commit=_git_commit(),
        lock_hash=_lock_hash(),
        versions={name: importlib.metadata.version(name) for name in REPORTED_PACKAGES},
        python=platform.python_version(),
    )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT_ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _git_commit() -> str | None:
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}+changes" if _git("status", "--porcelain") else commit


def _lock_hash() -> str | None:
    lock = PROJECT_ROOT / "requirements.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None
