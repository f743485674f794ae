"""What is merged and what is published."""

from typing import Literal

from pydantic import Field

from vlmtune.config.section import Section

# Of the mean KL: a tenth is about a third of the distance, whose square KL grows with.
MAX_RELATIVE_DIVERGENCE = 0.1


class MergeConfig(Section):
    """Whether the adapter is merged into the base in bf16."""

    enabled: bool = True
    max_relative_divergence: float = Field(
        MAX_RELATIVE_DIVERGENCE,
        gt=0,
        lt=1,
        description="how far merging may move the model, as a share of how far the adapter moved "
        "it (mean KL), besides rounding noise; see merging.md",
    )


class HubConfig(Section):
    """Where to publish. Without a repo_id the same content is left in the run's folder."""

    repo_id: str | None = Field(None, description="owner/name on the Hub; null: push nothing")
    private: bool = True
    push: list[Literal["adapter", "merged"]] = Field(
        ["adapter"],
        min_length=1,
        description="the adapter goes to repo_id, the merged model to repo_id-merged",
    )
    token_secret: str | None = Field(
        None,
        description="ZenML secret whose key HF_TOKEN holds the token; null: the environment's "
        "HF_TOKEN, or the login of the Hub's client",
    )
    license: str | None = Field(None, description="licence named in the model card")
    base_license: str | None = Field(None, description="the base model's, named there too")
    data_license: str | None = Field(None, description="the catalog's, named there too")

    @property
    def secrets(self) -> list[str]:
        """ZenML secrets that the step which pushes gets, as environment variables."""
        return [self.token_secret] if self.token_secret else []


class TrackingConfig(Section):
    """How the run is shown in MLflow."""

    example_rows: int = Field(24, ge=0, description="held-out rows in the table with pictures")
