"""Settings of training that are vlmtune's own; TRL's options stand in `training`."""

from pathlib import Path

from pydantic import Field

from vlmtune.config.section import Section


class OutputConfig(Section):
    """Where things are written on the machine that runs the pipeline."""

    runs_dir: Path = Field(Path("runs"), description="one folder a run, with its report")
    work_dir: Path = Field(
        Path(".vlmtune"), description="checkpoints and other files that a rerun may need"
    )
