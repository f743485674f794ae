"""What a training is told, and where it keeps things."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmtune.config.training import PackingConfig


@dataclass(frozen=True)
class TrainingPlan:
    """What to train, and where to keep things while training.

    Attributes:
        seed: of the LoRA weights, the dropout and the row order.
        lora, training, quantization: options of peft.LoraConfig, trl.SFTConfig and
            transformers.BitsAndBytesConfig.
        device: cpu or cuda.
        folder: checkpoints and the finished adapter; one folder for one fingerprint.
        tensorboard: where TensorBoard's events go; None for none.
        run: name of the run that trains, which may remove the checkpoints in the end.
        packing: how rows are laid out.
        features: folder of cached picture features; None to compute them every time.
        features_gib: how much of the disk they may take.
        fp8: hold the frozen weights in fp8 while training. The model is used up by it.
    """

    seed: int
    lora: dict[str, Any]
    training: dict[str, Any]
    device: str
    folder: Path
    tensorboard: Path | None = None
    run: str = ""
    packing: PackingConfig = field(default_factory=PackingConfig)
    features: Path | None = None
    features_gib: float = 50.0
    quantization: dict[str, Any] = field(default_factory=dict)
    fp8: bool = False
