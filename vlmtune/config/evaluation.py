"""What is measured on the held-out rows, and what is asked of a model before it goes out."""

from typing import Annotated, Literal

from pydantic import Field

from vlmtune.config.section import Section

Metric = str
LeadMetric = Literal["auto", "rouge_l", "chrf_row"]
BatchSize = Annotated[int, Field(gt=0)] | Literal["auto"]


class RulesConfig(Section):
    """Rules of the trade: what no description may do, however well it scores."""

    min_length: int | None = Field(None, ge=0, description="characters")
    max_length: int | None = Field(None, ge=1, description="characters")
    named_fields: list[str] = Field(
        [], description="fields whose value must stand in the description, in any case"
    )
    banned: list[str] = Field([], description="phrases that must not, whole words in any case")
    no_html: bool = True
    no_prompt_leak: bool = True
    no_repetition: bool = True
    same_language: bool = Field(True, description="as the catalog's own description, where sure")
    no_invented_numbers: bool = Field(
        True, description="each number stands in the prompt or in the catalog's own description"
    )


class EvaluationConfig(Section):
    """How the base and the tuned model are compared on the same held-out rows."""

    max_rows: int = Field(200, gt=0, description="at most so many held-out rows are described")
    batch_size: BatchSize = Field(
        16, description="rows described at a time; auto: as many as the memory holds"
    )
    copied_fields: list[str] = Field(
        [], description="fields whose value must stand in the description, letter by letter"
    )
    terms: dict[str, list[str]] = Field(
        {},
        description="vocabularies (such as house colours): the share of rows whose description "
        "names the same term as the reference, and no other",
    )
    lead_metric: LeadMetric = Field(
        "auto",
        description="what decides; auto: rouge_l, or chrf_row where words are not split by spaces",
    )
    rules: RulesConfig = RulesConfig()
    picture_rows: int = Field(
        100, ge=0, description="rows described with another row's picture too; 0: no picture test"
    )


Outcome = Literal["failed", "kept_back"]


class GateOutcomes(Section):
    """What becomes of a model that does not meet a check: `failed` fails the run, `kept_back`
    publishes nothing and leaves the run green."""

    floor: Outcome = Field("failed", description="a metric below its floor")
    missing: Outcome = Field("failed", description="a metric that could not be measured")
    groups: Outcome = Field("kept_back", description="not enough held-out groups")
    inert: Outcome = Field("kept_back", description="the adapter changes no description")
    base: Outcome = Field("kept_back", description="not surely better than the base model")
    champion: Outcome = Field("kept_back", description="not surely better than the champion")
    picture: Outcome = Field("kept_back", description="blind: another picture changes nothing")
    rules: Outcome = Field("kept_back", description="too many rows break a rule of the trade")
    merged: Outcome = Field("failed", description="the merged model is not what was tested")


class GateConfig(Section):
    """What is asked of a model before it goes out. Margins are shares of the lead metric's scale
    (0.02 is 0.02 of ROUGE-L, 2 of chrF), held against the lower end of a 95 % interval."""

    min_groups: int = Field(
        30, ge=2, description="evaluated groups of held-out rows below which no model goes out"
    )
    floors: dict[Metric, float] = Field(
        {}, description="metric of the tuned model -> its least value, such as rouge_l: 0.5"
    )
    beat_base: float | None = Field(0.0, description="by more than this; null: not asked")
    beat_champion: float | None = Field(0.0, description="by more than this; null: not asked")
    picture_margin: float | None = Field(
        0.02, description="own pictures must score better than others' by more; null: not asked"
    )
    max_violations: float | None = Field(
        0.1, ge=0, le=1, description="share of rows that break a rule; null: not asked"
    )
    merged_margin: float = Field(
        0.05, ge=0, description="so much may the merged model score below the tuned one"
    )
    outcomes: GateOutcomes = GateOutcomes()
