"""Settings of training that are vlmtune's own; TRL's options stand in `training`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from vlmtune.config.section import Section

CPU_PACK_TOKENS = 8_192


class OutputConfig(Section):
    """Where things are written on the machine that runs the pipeline."""

    runs_dir: Path = Field(Path("runs"), description="one folder a run, with its report")
    work_dir: Path = Field(
        Path(".vlmtune"), description="checkpoints and other files that a rerun may need"
    )


class PackingConfig(Section):
    """How the rows of an optimizer step are laid out.

    A step has `training.per_device_train_batch_size * gradient_accumulation_steps` rows; packed,
    they are split into as few sequences as `max_tokens` allows, balanced and without padding.
    """

    packed: bool = Field(
        True, description="several rows in one sequence; false: batches padded to the longest row"
    )
    max_tokens: int | Literal["auto"] = Field(
        "auto", description="tokens in a pack; auto: what the card's memory holds"
    )


class ComputeConfig(Section):
    """How the frozen weights are multiplied while training."""

    frozen_weights: Literal["nf4", "fp8"] = Field(
        "nf4",
        description="fp8: unpacked once and rounded to 8 bits, on Hopper and later; twice the "
        "memory for the weights and about half as fast again, with layers compiled",
    )


class VisionCacheConfig(Section):
    """Picture features kept on disk, where training does not change the vision tower."""

    enabled: bool = Field(True, description="compute a picture's features once, not every epoch")
    folder: Path | None = Field(None, description="null: vision_features in output.work_dir")
    max_gib: float = Field(50, gt=0, description="the least recently used make room")
