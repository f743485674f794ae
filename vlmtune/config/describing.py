"""How a trained model describes a new catalog: `run.py --pipeline describe`."""

from typing import Literal

from pydantic import Field

from vlmtune.config.evaluation import BatchSize
from vlmtune.config.section import Section


class DescribeConfig(Section):
    """How descriptions are written. What is written is decided by the run that trained the model:
    its prompt, its generation options and its rules of the trade."""

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="what generates; vllm is a package of its own, for a GPU"
    )
    batch_size: BatchSize = Field(
        "auto", description="rows described at a time; auto: as many as the memory holds"
    )
    page_rows: int = Field(
        500, ge=1, description="rows shown on the page, flagged ones first; the tables have all"
    )
