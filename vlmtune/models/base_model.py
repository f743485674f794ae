"""Which exact base model is meant: Hub id + commit, or content hash of a local folder."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vlmtune.config.model import ModelConfig
from vlmtune.errors import UserError
from vlmtune.revision import hash_folder, is_local, resolve_commit


class BaseModelRef(BaseModel):
    """A base model that cannot change behind its name.

    Attributes:
        id: Hub id, or path of a local folder.
        commit: 40 hex digits on the Hub; None for a local folder.
        content_hash: SHA-256 over the files of a local folder; None on the Hub.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    commit: str | None = None
    content_hash: str | None = None

    @property
    def revision(self) -> str:
        """What to show and compare: `commit` or `sha256:content_hash`."""
        return self.commit or f"sha256:{self.content_hash}"


def resolve_base_model(model: ModelConfig) -> BaseModelRef:
    """Pin the configured base model to a commit or a content hash.

    Raises:
        UserError: no such model, a folder that lacks a part, or a Hub that cannot be asked.
    """
    if is_local(model.id):
        folder = Path(model.id).expanduser()
        _require_model_files(folder)
        return BaseModelRef(id=str(folder), content_hash=hash_folder(folder))
    return BaseModelRef(id=model.id, commit=resolve_commit(model.id, model.revision, "model"))


def require_unchanged(base: BaseModelRef) -> None:
    """Raise UserError if a local base model is no longer the one that was resolved."""
    if base.content_hash and hash_folder(Path(base.id)) != base.content_hash:
        raise UserError(
            f"the files in {base.id} are no longer those that this run began with.",
            "Run the pipeline again: it takes the base model as it is now.",
        )


def _require_model_files(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"no such model folder: {folder.resolve()}.", "Set model.id.")
    needed = {
        "config.json": ["config.json"],
        "weights (*.safetensors)": ["*.safetensors"],
        "a processor (processor_config.json or preprocessor_config.json)": [
            "processor_config.json",
            "preprocessor_config.json",
        ],
        "a tokenizer (tokenizer.json)": ["tokenizer.json", "tokenizer.model", "vocab.json"],
    }
    for what, patterns in needed.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            raise UserError(
                f"the model folder {folder} lacks {what}.",
                "Save the model with model.save_pretrained and processor.save_pretrained.",
            )
