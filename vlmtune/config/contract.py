"""The data contract: what a row of the catalog must be to be trained on."""

import re
from typing import Annotated

from pydantic import Field, field_validator

from vlmtune.config.section import Section

LanguageCode = Annotated[str, Field(pattern="^[a-z]{2}$")]


class TextRule(Section):
    """What the text of one field must be; a field without a rule must not be empty."""

    required: bool = Field(True, description="false: the field may be empty")
    min_length: int | None = Field(None, ge=1, description="in characters")
    max_length: int | None = Field(None, ge=1, description="in characters")
    languages: list[LanguageCode] = Field(
        [], description="ISO 639-1 codes; a text that is surely in another one is refused"
    )
    allowed: list[str] | None = Field(None, description="the only values that are taken")
    banned: list[str] = Field([], description="phrases that must not occur, in any case")
    pattern: str | None = Field(None, description="regular expression that must be found")

    @field_validator("pattern")
    @classmethod
    def _pattern_can_be_compiled(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern


class PictureRule(Section):
    """What the pictures of a row must be."""

    min_side: int = Field(16, ge=1, description="shorter side, in pixels")
    max_count: int = Field(1, ge=1, description="pictures of one row")


class ContractConfig(Section):
    """Rows that break the contract are quarantined, each with its reasons."""

    texts: dict[str, TextRule] = Field({}, description="field of data.columns -> its rule")
    pictures: PictureRule = PictureRule()
