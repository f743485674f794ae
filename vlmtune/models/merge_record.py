"""What a merge left behind: the merged model's folder, and how it is known to be right."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vlmtune.artifact import Artifact
from vlmtune.files import ScratchFolder
from vlmtune.models.base_model import BaseModelRef


class MergeCheck(BaseModel):
    """One thing that is asked of a merged model.

    Attributes:
        name: what is asked.
        wanted, found: in words.
        met: whether it is so; what could not be measured is not met.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    wanted: str
    found: str
    met: bool


class MergeRecord(BaseModel):
    """Whether there is a merged model, of what, and what was asked of it.

    Attributes:
        status: merged, skipped, or failed: it is not the model that was tuned, and not kept.
        reason: why it was skipped or failed; empty for a merged model.
        base: the base model that was merged into.
        adapter_hash: content hash of the adapter.
        checks: what was asked; nothing more is asked of an adapter that changes nothing.
        files: path in the merged model's folder -> SHA-256 of the file as it was written.
    """

    model_config = ConfigDict(frozen=True)

    status: Literal["merged", "skipped", "failed"]
    reason: str = ""
    base: BaseModelRef
    adapter_hash: str
    checks: list[MergeCheck] = []
    files: dict[str, str] = {}


@dataclass(frozen=True)
class MergeResult(Artifact):
    """The record of a merge and the folder of the merged model.

    Attributes:
        folder: None if the merge was skipped or failed.
        scratch: removes `folder` once nothing holds it any more; None for a folder that stays.
    """

    record: MergeRecord
    folder: Path | None = None
    scratch: ScratchFolder | None = field(default=None, repr=False, compare=False)
