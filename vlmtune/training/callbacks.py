"""What the Trainer tells while it trains: log lines, metrics, whole checkpoints."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from vlmtune.training.checkpoints import CHECKPOINT_PREFIX, mark_complete

logger = logging.getLogger(__name__)

MetricsLogger = Callable[[dict[str, float], int], None]


class MarkComplete(TrainerCallback):
    """Tells whole checkpoints from those that a kill cut short."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after the last file of a checkpoint is written."""
        checkpoint = Path(args.output_dir) / f"{CHECKPOINT_PREFIX}-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            mark_complete(checkpoint)


class ReportMetrics(TrainerCallback):
    """Hands each log of the Trainer to the experiment tracker."""

    def __init__(self, log_metrics: MetricsLogger) -> None:
        self.log_metrics = log_metrics

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the Trainer with a dict of numbers."""
        if state.is_world_process_zero and logs:
            numbers = {key: float(value) for key, value in logs.items() if _is_number(value)}
            self.log_metrics(numbers, state.global_step)


class BarOnly(ProgressCallback):
    """The Trainer's progress bar without its log lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the Trainer with a dict of numbers, which `LogLines` shows."""


class LogLines(TrainerCallback):
    """One readable line for each log: step, losses, speed, time left."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember where the clock started."""
        self.start, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the Trainer with a dict of numbers."""
        if not state.is_world_process_zero or not logs:
            return
        done = state.global_step - self.first_step
        seconds = time.monotonic() - self.start
        left = seconds / done * (state.max_steps - state.global_step) if done else 0.0
        step = f"step {state.global_step:>5}/{state.max_steps}"
        if "loss" in logs:
            speed = f"{logs['tokens_per_second']:.0f}" if "tokens_per_second" in logs else "-"
            logger.info(
                "%s  loss %.4f  lr %.2e  %s tokens/s  %.0f s left",
                *(step, logs["loss"], logs.get("learning_rate", 0.0), speed, left),
            )
        elif "eval_loss" in logs:
            logger.info("%s  held-out loss %.4f", step, logs["eval_loss"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
