"""What is measured on the held-out rows."""

from pydantic import Field

from vlmtune.config.section import Section


class EvaluationConfig(Section):
    """How the base and the tuned model are compared on the same held-out rows."""

    max_rows: int = Field(200, gt=0, description="at most so many held-out rows are described")
    batch_size: int = Field(16, gt=0, description="rows described at a time")
    copied_fields: list[str] = Field(
        [], description="fields whose value must stand in the description, letter by letter"
    )
    terms: dict[str, list[str]] = Field(
        {},
        description="vocabularies (such as house colours): the share of rows whose description "
        "names the same term as the reference, and no other",
    )
