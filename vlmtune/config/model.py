"""The base model and how it is loaded."""

from typing import Literal

from pydantic import Field

from vlmtune.config.section import Section


class ModelConfig(Section):
    """The base model: a vision-language model on the Hub, or a local folder."""

    id: str = Field(description="model id on the Hub, or a local folder")
    revision: str | None = Field(
        None, description="branch, tag or commit on the Hub; resolved to a commit before the run"
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto takes the GPU if there is one; cuda insists on one"
    )
    max_pixels: int | None = Field(
        None, gt=0, description="larger pictures are shrunk to it; null: the processor's own limit"
    )
    min_pixels: int | None = Field(
        None, gt=0, description="smaller pictures are enlarged to it; null: the processor's own"
    )
    attn_implementation: str | None = Field(
        None, description="transformers' name of the attention; null: its default"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model: only if you have read it"
    )
