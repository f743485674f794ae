"""Where the catalog comes from, what its columns mean, and how a row becomes a prompt."""

import string
from typing import Self

from pydantic import Field, field_validator, model_validator

from vlmtune.config.section import Section

PICTURE, DESCRIPTION = "image", "description"


class HeldOutConfig(Section):
    """Which rows are kept out of training to measure on."""

    fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the groups that is held out from training"
    )
    by: str | None = Field(
        None, description="field whose equal values stay on one side; null: each row on its own"
    )


class DataConfig(Section):
    """The catalog: a local folder with metadata.csv / .jsonl / .parquet, or a Hub data set."""

    source: str = Field(description="local folder, or data set id on the Hub")
    subset: str | None = Field(None, description="configuration of a Hub data set")
    split: str = Field("train", description="split of a Hub data set")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")
    columns: dict[str, str] = Field(
        description="field -> column of the catalog; `image` and `description` must be there, "
        "every other field can be named in the prompt template",
    )
    max_rows: int | None = Field(None, gt=0, description="only the first so many rows, for a try")
    held_out: HeldOutConfig = HeldOutConfig()

    @field_validator("columns")
    @classmethod
    def _picture_and_description_are_mapped(cls, columns: dict[str, str]) -> dict[str, str]:
        missing = [field for field in (PICTURE, DESCRIPTION) if field not in columns]
        if missing:
            raise ValueError(f"the field {missing[0]!r} must be mapped to a column of the catalog")
        reserved = [field for field in columns if field in ("row", "row_id")]
        if reserved:
            raise ValueError(f"the field name {reserved[0]!r} is vlmtune's own, take another")
        return columns

    @model_validator(mode="after")
    def _held_out_field_is_mapped(self) -> Self:
        if self.held_out.by is not None and self.held_out.by not in self.columns:
            raise ValueError(
                f"held_out.by names the field {self.held_out.by!r}, which data.columns lacks"
            )
        if self.held_out.by == PICTURE:
            raise ValueError(f"held_out.by names {PICTURE!r}, which is no text to group rows by")
        return self


class PromptConfig(Section):
    """How a row becomes a prompt. The completion is the row's description."""

    system: str = Field("", description="system message; empty for none")
    template: str = Field(description="user message; {field} stands for a field of data.columns")

    @property
    def fields(self) -> list[str]:
        """The fields that the template names, in order of appearance."""
        names = [name for _, name, _, _ in string.Formatter().parse(self.template) if name]
        return list(dict.fromkeys(names))

    @field_validator("template")
    @classmethod
    def _template_can_be_parsed(cls, template: str) -> str:
        for _, name, form, conversion in string.Formatter().parse(template):
            if name is not None and (not name.isidentifier() or form or conversion):
                raise ValueError(
                    f"{{{name}}} is no field name; write {{field}}, and {{{{ }}}} for plain braces"
                )
        return template
