"""Pushing a folder to the Hugging Face Hub. The token comes from the environment only."""

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vlmtune.errors import UserError

logger = logging.getLogger(__name__)


class PushedRepo(BaseModel):
    """A repo as it is after a push."""

    model_config = ConfigDict(frozen=True)

    repo_id: str
    url: str
    commit: str


def push_folder(folder: Path, repo_id: str, private: bool, message: str) -> PushedRepo:
    """Create the repo if needed and commit the folder's files in one commit.

    Raises:
        UserError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns="*"
        )
    except HfHubHTTPError as error:
        raise UserError(
            f"the Hub refuses the push to {repo_id}: {error}.",
            "Check hub.repo_id, and that HF_TOKEN holds a token with write access.",
        ) from None
    except Exception as error:  # each HTTP library has connection errors of its own
        raise UserError(
            f"the push to {repo_id} broke off ({type(error).__name__}: {error}).",
            "Run the same command again: everything before the push comes from the cache.",
        ) from error
    logger.info("Pushed %s", commit.commit_url)
    return PushedRepo(repo_id=repo_id, url=commit.commit_url, commit=commit.oid)
