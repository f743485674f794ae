"""What exactly a name stands for: the commit of a Hub repo, the content hash of a folder."""

import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vlmtune.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
LARGE = 2**20  # bytes: smaller files are read again each time, and not remembered
# A file is remembered once it has not changed for longer than a tick of the coarsest file system's
# clock (FAT: 2 s): a change within the same tick would leave no trace in its time.
SETTLED_NS = 2 * 10**9
_hashes: dict[tuple[int, int, int, int], str] = {}


def is_local(source: str) -> bool:
    """Whether a source names a folder here rather than a data set or model on the Hub."""
    return Path(source).expanduser().exists() or not _looks_like_hub_id(source)


def _looks_like_hub_id(source: str) -> bool:
    parts = source.split("/")
    return len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~")


def hash_folder(folder: Path) -> str:
    """SHA-256 over the relative names and contents of all files below a folder."""
    return digest_of(hash_files(folder))


def hash_files(folder: Path) -> dict[str, str]:
    """Relative name -> SHA-256 of the content, for all files below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def digest_of(files: dict[str, str]) -> str:
    """One SHA-256 over what `hash_files` found, in whatever order it comes."""
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.split("/")):
        digest.update(f"{name}\0{files[name]}\n".encode())
    return digest.hexdigest()


def hash_text(text: str) -> str:
    """SHA-256 over a text; 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 over the content of a file; 64 hex digits.

    A large file is read once per process, under all its names, as long as inode, size and time of
    the last change stay as they are.
    """
    status = path.stat()
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if identity in _hashes:
        return _hashes[identity]
    settled = time.time_ns() - status.st_mtime_ns > SETTLED_NS
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if settled and status.st_size >= LARGE:
        _hashes[identity] = digest
    return digest


def differences(recorded: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """Name -> changed, missing or added, for each file whose hash is not the recorded one."""
    return {
        name: "missing" if name not in found else "changed" if name in recorded else "added"
        for name in sorted(recorded.keys() | found.keys())
        if recorded.get(name) != found.get(name)
    }


def public_name(source: str) -> str:
    """A Hub id or relative path as it is; of an absolute path only the last name goes public."""
    path = Path(source)
    return path.name if path.is_absolute() or source.startswith("~") else source


def resolve_commit(
    repo_id: str, revision: str | None, repo_type: Literal["model", "dataset"]
) -> str:
    """The commit that a branch or tag of a Hub repo stands for now.

    A full commit is taken as it is, without asking. Raises UserError where the repo is not
    found, is gated, or the Hub cannot be reached.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    key = "model.id" if repo_type == "model" else "data.source"
    try:
        hub = HfApi()
        info = hub.repo_info(repo_id, revision=revision, repo_type=repo_type, timeout=30)
        if info.gated:  # everyone may read what a gated repo is, not everyone its files
            hub.auth_check(repo_id, repo_type=repo_type)
    except GatedRepoError:
        raise UserError(
            f"{key}: {repo_id} is gated and your account has no access to it.",
            "Accept its terms on its Hub page and set HF_TOKEN in the environment.",
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{key}: neither a folder here nor a repo on the Hub: {repo_id}.",
            "Check the name; for a private or gated one set HF_TOKEN in the environment.",
        ) from None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{key}: the Hub refuses {repo_id}: {reason}.", "Check the revision and HF_TOKEN."
        ) from None
    except Exception as error:  # each HTTP library has connection errors of its own
        raise UserError(
            f"{key}: {repo_id} is no folder here, and the Hub cannot be reached "
            f"({type(error).__name__}).",
            "Check the name and the network, or pin a full commit that is in the local cache.",
        ) from error
    return str(info.sha)


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; of a file, its own."""
    if folder.is_file():
        return folder.stat().st_size
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
