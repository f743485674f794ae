"""Where the catalog comes from, what its columns mean, and how a row becomes a prompt."""

import string
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from vlmtune.config.contract import ContractConfig, TextRule
from vlmtune.config.section import Section

PICTURE, DESCRIPTION = "image", "description"
PROMOTED = "promoted"

# Field -> column, or several columns where a row has several pictures.
Columns = dict[str, str | list[str]]


class HeldOutConfig(Section):
    """Which rows are kept out of training to measure on."""

    fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the groups that is held out from training"
    )
    by: str | list[str] | None = Field(
        None,
        description="field whose equal values mean the same product; in a list, as in "
        "[parent_sku, sku], an empty cell falls through to the next field; null: only images and "
        "descriptions do",
    )

    @property
    def fields(self) -> list[str]:
        """The fields of `by`, the one that counts first before those it falls through to."""
        return [self.by] if isinstance(self.by, str) else self.by or []


class DuplicatesConfig(Section):
    """When rows share an image or a description, which keeps them on one side of the split."""

    max_hash_distance: int = Field(
        4, ge=0, le=64, description="differing bits of the 64-bit perceptual hashes"
    )
    max_colour_distance: float = Field(
        4.0, ge=0, le=255, description="mean difference of the colours of a 4 x 4 thumbnail"
    )
    min_description_similarity: float | None = Field(
        None,
        ge=0.5,
        le=1,
        description="share of their five-character pieces that near-equal descriptions have in "
        "common; null: only equal descriptions tie",
    )
    max_sharing_products: int = Field(
        10,
        ge=1,
        description="what more products share (a size chart, a placeholder, 'Ask for price') says "
        "nothing about them, and ties no rows",
    )


class DownloadsConfig(Section):
    """How pictures named by an http(s) address are fetched."""

    workers: int = Field(16, ge=1, le=64, description="downloads at a time")
    timeout_seconds: float = Field(
        30.0, gt=0, description="for one picture, from first to last byte"
    )
    attempts: int = Field(3, ge=1, description="tries before a picture is given up")
    max_megabytes: float = Field(50.0, gt=0, description="a larger file is refused")
    allow_private: bool = Field(
        False, description="also fetch from private, loopback and link-local addresses"
    )
    refresh: bool = Field(
        False, description="ask in each run whether known addresses have new pictures"
    )


class SourceConfig(Section):
    """One place that rows come from: a local folder or table, or a Hub data set."""

    source: str = Field(description="local folder or table file, or data set id on the Hub")
    metadata: str | None = Field(
        None,
        description="name of the table in the folder; null: its one metadata.csv/jsonl/parquet",
    )
    encoding: str = Field("utf-8", description="of a csv or jsonl table; a byte-order mark is fine")
    subset: str | None = Field(None, description="configuration of a Hub data set")
    split: str = Field("train", description="split of a Hub data set")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")


class FurtherSource(SourceConfig):
    """A source whose rows are added to those of the first."""

    columns: Columns | None = Field(None, description="null: as in data.columns")


class DataConfig(SourceConfig):
    """The catalog: where its rows come from, what they mean and what is asked of them."""

    name: str | None = Field(
        None,
        description="what the catalog is called: runs on catalogs of one name carry the split on; "
        "null: its source",
    )
    columns: Columns = Field(
        description="field -> column of the catalog (dots lead into nested values, a list names "
        "several picture columns); `image` and `description` must be there, every other field can "
        "be named in the prompt template",
    )
    described: bool = Field(
        True, description="false: rows need no description, as they are to be described"
    )
    more_sources: list[FurtherSource] = Field([], description="further sources, joined to this one")
    max_rows: int | None = Field(None, gt=0, description="only the first so many rows, for a try")
    picture_separator: str | None = Field(
        None, description="what stands between several pictures in one cell, as in a.jpg|b.jpg"
    )
    background: str = Field(
        "#ffffff", pattern="^#[0-9a-fA-F]{6}$", description="colour laid below transparent pictures"
    )
    downloads: DownloadsConfig = DownloadsConfig()
    contract: ContractConfig = ContractConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    max_tokens: int | None = Field(
        None, gt=0, description="longer rows are quarantined, never cut; null: the model's context"
    )
    max_quarantine: float = Field(
        0.05, ge=0, le=1, description="the run stops before training above this share of rows"
    )
    previous: str | None = Field(
        PROMOTED,
        description="run whose split is carried on and whose catalog this one is compared with: "
        "promoted, the name of a run, or null",
    )

    @property
    def all_sources(self) -> list[FurtherSource]:
        """The first source and the further ones, each with its columns."""
        first = FurtherSource(**{name: getattr(self, name) for name in FurtherSource.model_fields})
        further = [
            source.model_copy(update={"columns": source.columns or self.columns})
            for source in self.more_sources
        ]
        return [first, *further]

    @property
    def catalog_name(self) -> str:
        """What the catalog is called, by the config or else by its source."""
        return self.name or self.source

    @property
    def row_contract(self) -> ContractConfig:
        """The contract, in which fields that fall through to each other may be empty."""
        by = self.held_out.fields
        optional = dict.fromkeys(by if len(by) > 1 else [], TextRule(required=False))
        return self.contract.model_copy(update={"texts": optional | self.contract.texts})

    @property
    def texts(self) -> list[str]:
        """The fields that hold text, in the config's order."""
        return [field for field in self.columns if field != PICTURE]

    def without_descriptions(self) -> "DataConfig":
        """The same for reading a catalog whose rows are to be described.

        A column of descriptions, if there is one, is not read, and no rule on it is held against
        the rows. The split, which nobody looks at, is carried on from no run.
        """
        texts = _without(DESCRIPTION, self.contract.texts)
        further = [
            source.model_copy(update={"columns": _without(DESCRIPTION, source.columns)})
            if source.columns
            else source
            for source in self.more_sources
        ]
        changes = {
            "described": False,
            "columns": _without(DESCRIPTION, self.columns),
            "more_sources": further,
            "contract": self.contract.model_copy(update={"texts": texts}),
            "held_out": HeldOutConfig(),
            "previous": None,
        }
        return self.model_copy(update=changes)

    @field_validator("columns")
    @classmethod
    def _picture_is_mapped(cls, columns: Columns) -> Columns:
        _require(PICTURE, columns)
        reserved = [field for field in columns if field in ("row", "row_id", "images")]
        if reserved:
            raise ValueError(f"the field name {reserved[0]!r} is vlmtune's own, take another")
        return columns

    @model_validator(mode="after")
    def _description_is_mapped(self) -> Self:
        if self.described:
            _require(DESCRIPTION, self.columns)
        return self

    @model_validator(mode="after")
    def _only_pictures_have_several_columns(self) -> Self:
        for source in self.all_sources:
            columns = source.columns or {}
            several = [field for field, column in columns.items() if isinstance(column, list)]
            if several not in ([], [PICTURE]):
                raise ValueError(f"the field {several[0]!r} names several columns; only image may")
            if set(columns) != set(self.columns):
                raise ValueError(
                    f"the columns of {source.source} map {', '.join(columns)}; the same fields as "
                    f"in data.columns are expected: {', '.join(self.columns)}"
                )
        return self

    @model_validator(mode="after")
    def _rules_name_mapped_fields(self) -> Self:
        for field in self.contract.texts:
            if field not in self.texts:
                raise ValueError(
                    f"contract.texts names the field {field!r}, which data.columns lacks "
                    f"(it has {', '.join(self.texts)})"
                )
        return self

    @model_validator(mode="after")
    def _held_out_field_is_mapped(self) -> Self:
        for field in self.held_out.fields:
            if field == PICTURE:
                raise ValueError(f"held_out.by names {field!r}, which is no text to group rows by")
            if field not in self.columns:
                raise ValueError(f"held_out.by names the field {field!r}, which data.columns lacks")
        return self


def _require(field: str, columns: Columns) -> None:
    if field not in columns:
        raise ValueError(f"the field {field!r} must be mapped to a column of the catalog")


def _without(field: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != field}


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
