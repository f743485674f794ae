"""Pushing a folder to the Hugging Face Hub, with the client's own token: HF_TOKEN or its login.

A push ends when what the Hub gives back is, byte for byte, what was to be published; only then
may it get a tag. Done twice, both change nothing the second time; broken off, they go on where
they were.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from vlmtune.errors import UserError
from vlmtune.publishing.patience import (
    Patience,
    PatientHub,
    cause_of,
    describe,
    may_pass,
    one_line,
    patient_hub,
)
from vlmtune.publishing.room import room_for
from vlmtune.publishing.same_files import require_same
from vlmtune.revision import folder_size, hash_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

ATTRIBUTES = ".gitattributes"  # the Hub's own file: it says which files are on LFS
DOWNLOAD_RECORDS = ".cache/huggingface/"  # what the client writes beside the files it downloads


class PushedRepo(BaseModel):
    """A repo as it is after a push.

    Attributes:
        repo_id: owner/name.
        url: page of the commit.
        commit: 40 hex digits.
        tag: the tag on that commit; None until `tag_commit` has set it.
        files: name -> SHA-256, as downloaded back from that commit.
    """

    model_config = ConfigDict(frozen=True)

    repo_id: str
    url: str
    commit: str
    tag: str | None = None
    files: dict[str, str] = {}


def push_folder(
    folder: Path,
    repo_id: str,
    private: bool,
    message: str,
    tag: str | None = None,
    files: Mapping[str, str] | None = None,
    patience: Patience | None = None,
) -> PushedRepo:
    """Create the repo if needed and make its files those of the folder.

    Nothing is committed where they are so already. The client makes one commit, or several where
    the folder is large; the last is downloaded back and compared.

    Args:
        tag: name of this version, such as v3. It is not set yet, but if it stands on another
            commit, nothing is sent.
        files: name -> SHA-256 that the folder must have; None takes them as they are now.
        patience: with a Hub that is busy or does not answer.

    Raises:
        NotWhatWasTested: what the Hub gives back is not the folder.
        UserError: the Hub refuses or cannot be reached, a private push would be public, the tag
            stands on another commit, or there is no room to download the repo back.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    files = dict(files if files is not None else hash_files(folder))
    with _errors_for_the_user(repo_id), patient_hub(patience or Patience()) as hub:
        hub.attempt(f"Finding {repo_id}", partial(_find_or_create, api, repo_id, private))
        commit = hub.attempt(
            f"Pushing to {repo_id}",
            partial(_commit, api, folder, files, repo_id, private, message, tag),
        )
        _require_arrived(hub, api, repo_id, commit, files, folder_size(folder))
    url = f"{api.endpoint}/{repo_id}/commit/{commit}"
    logger.info("Pushed %s", url)
    return PushedRepo(repo_id=repo_id, url=url, commit=commit, files=files)


def tag_commit(pushed: PushedRepo, tag: str, patience: Patience | None = None) -> PushedRepo:
    """Mark what was pushed, and found to have arrived, as a version.

    Raises:
        UserError: the Hub refuses or cannot be reached, or the tag stands on another commit.
    """
    from huggingface_hub import HfApi

    api, repo_id = HfApi(), pushed.repo_id
    with _errors_for_the_user(repo_id), patient_hub(patience or Patience()) as hub:
        hub.attempt(f"Tagging {repo_id}", partial(_tag, api, repo_id, tag, pushed.commit))
    logger.info("Tagged %s as %s", pushed.url, tag)
    return pushed.model_copy(update={"tag": tag})


def _find_or_create(api: "HfApi", repo_id: str, private: bool) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.repo_info(repo_id)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        api.create_repo(repo_id, private=private)


def _commit(
    api: "HfApi",
    folder: Path,
    files: Mapping[str, str],
    repo_id: str,
    private: bool,
    message: str,
    tag: str | None,
) -> str:
    """Make the files of `main` those of the folder; returns the commit that has them.

    It looks anew each time it is tried: a commit whose answer was lost is found, not made twice.
    """
    head = api.repo_info(repo_id)
    if private and not head.private:  # an older repo stays as it was made
        raise UserError(
            f"hub.private is true, but {repo_id} is public.",
            "Make it private on its page, set hub.private: false, or name another repo.",
        )
    there = _has_files(
        api.list_repo_tree(repo_id, recursive=True, revision=head.sha), folder, files
    )
    if tag is not None:
        _require_free(api, repo_id, tag, head.sha if there else None)
    if there:
        logger.info("%s has these files already", repo_id)
        return str(head.sha)
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns="*"
    )
    return str(commit.oid)


def _has_files(entries: Iterable[Any], folder: Path, files: Mapping[str, str]) -> bool:
    """Whether a repo's files are those of the folder: by SHA-256 on LFS, git's hash otherwise."""
    from huggingface_hub import RepoFile

    there = [entry for entry in entries if isinstance(entry, RepoFile) and entry.path != ATTRIBUTES]
    if {entry.path for entry in there} != set(files):
        return False
    return all(
        files[entry.path] == entry.lfs.sha256
        if entry.lfs
        else _git_hash(folder / entry.path) == entry.blob_id
        for entry in there
    )


def _git_hash(path: Path) -> str:
    content = path.read_bytes()  # small: the Hub puts anything large on LFS
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _require_arrived(
    hub: PatientHub, api: "HfApi", repo_id: str, commit: str, files: Mapping[str, str], size: int
) -> None:
    """Download a commit afresh and refuse it if any file is not as it was sent."""
    with (
        room_for(f"download {repo_id} back", size),
        tempfile.TemporaryDirectory(prefix="vlmtune-") as scratch,
    ):
        target = Path(scratch) / "repo"
        download = partial(
            api.snapshot_download,
            repo_id,
            revision=commit,
            local_dir=target,
            cache_dir=Path(scratch) / "cache",
        )
        hub.attempt(f"Downloading {repo_id} back", download)
        found = {
            name: digest
            for name, digest in hash_files(target).items()
            if name != ATTRIBUTES and not name.startswith(DOWNLOAD_RECORDS)
        }
    require_same(
        files,
        found,
        f"{repo_id} at commit {commit}",
        "Somebody else may push to it: see to it that nobody does, and run the same command "
        "again. Until then do not use that commit; it has no tag.",
    )


def _tag(api: "HfApi", repo_id: str, tag: str, commit: str) -> None:
    if not _require_free(api, repo_id, tag, commit):
        api.create_tag(repo_id, tag=tag, revision=commit)


def _require_free(api: "HfApi", repo_id: str, tag: str, commit: str | None) -> bool:
    """Whether the tag stands on the commit already; refuses one that stands elsewhere."""
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    if tag in tags and tags[tag] != commit:
        raise UserError(
            f"{repo_id} has a tag {tag} already, on the other commit {tags[tag]}.",
            "Publish under the next version's name, or delete that tag on the Hub.",
        )
    return tag in tags


# --- Errors ----------------------------------------------------------------------------------


@contextmanager
def _errors_for_the_user(repo_id: str) -> Iterator[None]:
    """Turn whatever the client raises into one line that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the client has many kinds, and each HTTP library its own
        cause = cause_of(error)
        if isinstance(cause, UserError):
            raise cause from None
        if may_pass(error):
            raise UserError(
                f"the push to {repo_id} broke off: {describe(error)}.",
                "Run the same command again later: everything before the push comes from the "
                "cache, and what is uploaded stays so.",
            ) from None
        if isinstance(cause, HfHubHTTPError):
            raise _refusal(repo_id, cause, cause.response.status_code) from None
        if isinstance(error, ValueError):  # a name, card or token the client itself does not take
            raise UserError(
                f"cannot push to {repo_id}: {one_line(error)}.",
                "Check hub.repo_id, hub.license and the characters in HF_TOKEN, then run again.",
            ) from error
        raise UserError(
            f"the push to {repo_id} broke off ({type(cause).__name__}: {one_line(cause)}).",
            "Run the same command again: everything before the push comes from the cache.",
        ) from error


def _refusal(repo_id: str, error: Exception, status: int) -> UserError:
    mends = {
        401: "Set HF_TOKEN to a token that the Hub knows, with write access.",
        403: f"Set HF_TOKEN to a token with write access to {repo_id}, or change hub.repo_id.",
        409: "Something else changes this repo right now: let it end, then run again.",
        412: "Something else changes this repo right now: let it end, then run again.",
    }
    return UserError(
        f"the Hub refuses the push to {repo_id}: {one_line(error)}.",
        mends.get(status, "Check hub.repo_id, and that HF_TOKEN holds a token with write access."),
    )
