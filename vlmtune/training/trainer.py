"""QLoRA training: TRL's SFTTrainer on a quantised base, resumable and reproducible."""

import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from vlmtune.encoding import CatalogCollator
from vlmtune.models.adapter import Adapter, AdapterRecord, save_adapter
from vlmtune.models.base_model import BaseModelRef
from vlmtune.training.checkpoints import (
    CHECKPOINT_PREFIX,
    last_complete_checkpoint,
    locked,
    mark_complete,
    mark_finished,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

logger = logging.getLogger(__name__)

MetricsLogger = Callable[[dict[str, float], int], None]
GIB = 1024**3


@dataclass(frozen=True)
class TrainingPlan:
    """What to train, and where to keep things while training.

    Attributes:
        seed: of the LoRA weights, the dropout and the row order.
        lora, training: options of peft.LoraConfig and trl.SFTConfig.
        device: cpu or cuda.
        folder: checkpoints and the finished adapter; one folder for one fingerprint.
        tensorboard: where TensorBoard's events go; None for none.
        run: name of the run that trains, which may remove the checkpoints in the end.
    """

    seed: int
    lora: dict[str, Any]
    training: dict[str, Any]
    device: str
    folder: Path
    tensorboard: Path | None = None
    run: str = ""


def train_adapter(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    base: BaseModelRef,
    train: "Dataset",
    held_out: "Dataset",
    plan: TrainingPlan,
    log_metrics: MetricsLogger,
) -> Adapter:
    """Train a LoRA adapter, going on from the last whole checkpoint if there is one.

    Args:
        model: the quantised base, on its device.
        train, held_out: rows with `prompt`, `completion` and `images`.
        log_metrics: called with (metrics, step) each time the Trainer logs.

    Returns:
        The adapter in `plan.folder / "adapter"`.
    """
    with locked(plan.folder):
        trainer = build_trainer(model, processor, train, held_out, plan, log_metrics)
        checkpoint = last_complete_checkpoint(plan.folder)
        if checkpoint:
            logger.info("Resuming the training that was interrupted after %s", checkpoint.name)
        start = time.monotonic()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        folder = plan.folder / "adapter"
        save_adapter(trainer.model, processor, base, folder)
        record = AdapterRecord(
            base=base,
            log_history=trainer.state.log_history,
            train_seconds=round(time.monotonic() - start, 2),
            train_rows=len(train),
            peak_memory_gib=memory_gib(peak=True),
            resumed_from=int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
        )
        mark_finished(plan.folder, plan.run)
        return Adapter(folder=folder, record=record)


def build_trainer(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    train: "Dataset",
    held_out: "Dataset",
    plan: TrainingPlan,
    log_metrics: MetricsLogger,
) -> "CatalogTrainer":
    """The SFTTrainer with its adapter initialised from the seed, in fp32."""
    arguments = sft_config(plan)
    trainer = CatalogTrainer(
        model=model,
        args=arguments,
        peft_config=LoraConfig(**plan.lora),
        processing_class=processor,
        train_dataset=train,
        eval_dataset=held_out if arguments.eval_strategy != "no" else None,
        data_collator=CatalogCollator(
            processor=processor, completion_only_loss=arguments.completion_only_loss is not False
        ),
        callbacks=[MarkComplete(), ReportMetrics(log_metrics), LogLines()],
    )
    _show_progress_once(trainer)
    _keep_adapter_in_fp32(trainer.model)
    return trainer


def sft_config(plan: TrainingPlan) -> SFTConfig:
    """TRL's options from the config, and those that vlmtune decides."""
    if plan.tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(plan.tensorboard)
    return SFTConfig(
        **plan.training,
        output_dir=str(plan.folder),
        seed=plan.seed,
        use_cpu=plan.device == "cpu",
        dataloader_pin_memory=plan.training.get("dataloader_pin_memory", plan.device != "cpu"),
        report_to=["tensorboard"] if plan.tensorboard else [],
        remove_unused_columns=False,  # the collator takes what it needs
        max_length=None,  # cutting a row would cut through its picture tokens
        include_num_input_tokens_seen="non_padding",
        disable_tqdm=not sys.stderr.isatty(),  # a bar fills a log file with thousands of lines
    )


def _show_progress_once(trainer: SFTTrainer) -> None:
    """`LogLines` tells what the Trainer's own callbacks would print again as raw dicts; its bar
    is kept where there is a terminal."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(BarOnly)


def _keep_adapter_in_fp32(model: torch.nn.Module) -> None:
    """TRL casts the adapter of a quantised model to bf16, a resume brings it back in fp32: only
    with fp32 from the start do a straight and a resumed run end in the same bits."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def memory_gib(peak: bool = False) -> float:
    """Memory in use: of the GPU where there is one, else of this process; GiB."""
    if torch.cuda.is_available():
        used = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    else:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
        used = peak_bytes if peak else psutil.Process().memory_info().rss
    return round(used / GIB, 3)


class CatalogTrainer(SFTTrainer):
    """SFTTrainer that logs speed and memory beside the loss."""

    _last_log: tuple[float, float] | None = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `tokens_per_second` (since the last log) and `memory_gib` to a training log."""
        if "loss" in logs:
            now, tokens = time.monotonic(), float(self.state.num_input_tokens_seen)
            if self._last_log and now > self._last_log[0]:
                seconds, count = now - self._last_log[0], tokens - self._last_log[1]
                logs["tokens_per_second"] = round(count / seconds, 1)
            self._last_log = (now, tokens)
            logs["memory_gib"] = memory_gib()
        super().log(logs, start_time)


class MarkComplete(TrainerCallback):
    """Tells whole checkpoints from those that a kill cut short."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after the last file of a checkpoint is written."""
        checkpoint = Path(args.output_dir) / f"{CHECKPOINT_PREFIX}-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            mark_complete(checkpoint, state.global_step)


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
