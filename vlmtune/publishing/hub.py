"""Pushing a folder to the Hugging Face Hub, with the client's own token: HF_TOKEN or its login."""

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
    """Create the repo if needed and make its files those of the folder.

    The client makes one commit of it, or several where the folder is large.

    Raises:
        UserError: the Hub refuses or cannot be reached, or a private push would be public.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:  # an older repo stays as it was made
            raise UserError(
                f"hub.private is true, but {repo_id} is public.",
                "Make it private on its page, set hub.private: false, or name another repo.",
            )
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns="*"
        )
    except UserError:
        raise
    except HfHubHTTPError as error:
        raise UserError(
            f"the Hub refuses the push to {repo_id}: {_one_line(error)}.",
            "Check hub.repo_id, and that HF_TOKEN holds a token with write access.",
        ) from None
    except ValueError as error:  # a name, card or token that the client itself does not take
        raise UserError(
            f"cannot push to {repo_id}: {_one_line(error)}.",
            "Check hub.repo_id, hub.license and the characters in HF_TOKEN, then run again.",
        ) from error
    except Exception as error:  # each HTTP library has connection errors of its own
        raise UserError(
            f"the push to {repo_id} broke off ({type(error).__name__}: {_one_line(error)}).",
            "Run the same command again: everything before the push comes from the cache.",
        ) from error
    logger.info("Pushed %s", commit.commit_url)
    return PushedRepo(repo_id=repo_id, url=commit.commit_url, commit=commit.oid)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(".")
