"""QLoRA training: TRL's SFTTrainer on a quantised base, packed, resumable and reproducible."""

import logging
import math
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from vlmtune.encoding import CatalogCollator
from vlmtune.errors import UserError
from vlmtune.models.adapter import Adapter, AdapterRecord, save_adapter
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.fp8 import has_fp8, hold_weights_in_fp8
from vlmtune.models.kernels import layers_compiled, layers_fused, use_fused_kernels
from vlmtune.models.vision import PICTURE_INPUT
from vlmtune.training.callbacks import BarOnly, LogLines, MarkComplete, MetricsLogger, ReportMetrics
from vlmtune.training.checkpoints import last_complete_checkpoint, locked, mark_finished
from vlmtune.training.layout import Ingredients, Layout, lay_out
from vlmtune.training.packing import DAMAGED, FEATURES, PICTURES, one_by_one
from vlmtune.training.packs import PackSampler
from vlmtune.training.plan import TrainingPlan

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

logger = logging.getLogger(__name__)

GIB = 1024**3


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

    Raises:
        UserError: the card's memory is too small for this config, or a loss, a gradient or a
            weight is no number.
    """
    with locked(plan.folder):
        start = time.monotonic()
        trainer = build_trainer(model, processor, base, train, held_out, plan, log_metrics)
        checkpoint = last_complete_checkpoint(plan.folder)
        if checkpoint:
            logger.info("Resuming the training that was interrupted after %s", checkpoint.name)
        prepared = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(trainer.layout) from error
        finally:
            trainer.layout.close()
        trainer.require_finite_weights()
        folder = plan.folder / "adapter"
        save_adapter(trainer.model, processor, base, folder)
        record = AdapterRecord(
            base=base,
            log_history=trainer.state.log_history,
            train_seconds=round(time.monotonic() - start, 2),
            prepare_seconds=round(prepared - start, 2),
            train_rows=len(train),
            peak_memory_gib=memory_gib(peak=True),
            resumed_from=int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
            layout=trainer.layout.facts,
        )
        mark_finished(plan.folder, plan.run)
        return Adapter(folder=folder, record=record)


def build_trainer(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    base: BaseModelRef,
    train: "Dataset",
    held_out: "Dataset",
    plan: TrainingPlan,
    log_metrics: MetricsLogger,
) -> "CatalogTrainer":
    """The SFTTrainer with its adapter initialised from the seed, in fp32, and its rows laid out."""
    set_seed(plan.seed)
    on_gpu = plan.device == "cuda"
    compiled = layers_compiled(plan.training, plan.fp8 and on_gpu)
    if plan.fp8:
        _require_fp8(model)
    if on_gpu and not compiled and layers_fused(plan.training):
        logger.info("Fused kernels: %s", use_fused_kernels(model))
    adapted = get_peft_model(model, LoraConfig(**plan.lora))
    collator = CatalogCollator(
        processor=processor,
        completion_only_loss=plan.training.get("completion_only_loss") is not False,
    )
    layout = lay_out(Ingredients(model, processor, collator, base, train, held_out, plan))
    # Only now: whether packs keep rows apart is seen without the noise of fp8, and nothing is
    # compiled for the two rows that it is tried on.
    if plan.fp8:
        logger.info("Frozen weights in fp8: %d layers", hold_weights_in_fp8(model))
    if compiled:
        _compile_layers(model)
    arguments = sft_config(plan, layout)
    trainer = CatalogTrainer(
        model=adapted,
        args=arguments,
        processing_class=processor,
        train_dataset=layout.train,
        eval_dataset=layout.held_out if arguments.eval_strategy != "no" else None,
        data_collator=layout.collator,
        callbacks=[MarkComplete(), ReportMetrics(log_metrics), LogLines()],
    )
    trainer.layout, trainer.plan = layout, plan
    _show_progress_once(trainer)
    _keep_adapter_in_fp32(trainer.model)
    return trainer


def _require_fp8(model: "PreTrainedModel") -> None:
    if not has_fp8(model.device):
        raise UserError("this GPU cannot multiply fp8 numbers.", "Set compute.frozen_weights: nf4.")


def _compile_layers(model: "PreTrainedModel") -> None:
    """`training.torch_compile`: each decoder layer by itself, so that packs of any size run on
    the same compiled code; the model as a whole would be compiled again and again."""
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True)


def sft_config(plan: TrainingPlan, layout: Layout) -> SFTConfig:
    """TRL's options from the config, and those that vlmtune decides."""
    if plan.tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(plan.tensorboard)
    on_gpu = plan.device != "cpu"
    defaults = {
        "dataloader_pin_memory": on_gpu,
        "accelerator_config": {"non_blocking": on_gpu},  # else each batch waits for the GPU
        "logging_nan_inf_filter": False,  # it would hide what `not_finite` stops at
        "dataloader_persistent_workers": layout.options["dataloader_num_workers"] > 0,
    }
    limit = plan.training.get("save_total_limit")
    decided = {
        "output_dir": str(plan.folder),
        "save_total_limit": max(2, limit)
        if limit
        else None,  # the newest may turn out to be damaged
        "seed": plan.seed,
        "use_cpu": not on_gpu,
        "torch_compile": False,  # the decoder's layers are compiled already
        "use_liger_kernel": False,  # the same kernels are in place already, see models/kernels.py
        "report_to": ["tensorboard"] if plan.tensorboard else [],
        "remove_unused_columns": False,  # the collator takes what it needs
        "max_length": None,  # cutting a row would cut through its picture tokens
        # It would wait for the GPU after each pack, whose tokens are counted before instead.
        "include_num_input_tokens_seen": "no" if layout.tokens else "non_padding",
        "disable_tqdm": not sys.stderr.isatty(),  # a bar fills a log file with thousands of lines
    }
    return SFTConfig(**{**defaults, **plan.training, **layout.options, **decided})


def out_of_memory(layout: Layout) -> UserError:
    """Which setting to change, and to what."""
    advice = []
    if not layout.checkpointing:
        advice.append("--set training.gradient_checkpointing=true")
    if layout.limit:
        advice.append(f"--set packing.max_tokens={layout.largest_pack // 2}")
    else:
        advice.append("--set packing.packed=true, or a smaller per_device_train_batch_size")
    advice.append("--set model.max_pixels=... for smaller pictures")
    return UserError(
        f"the GPU's memory is full ({memory_gib(peak=True):.1f} GiB in use at the peak).",
        "Try, in this order: " + "; ".join(advice) + ".",
    )


def not_finite(what: str, value: float, step: int, rate: float, plan: TrainingPlan) -> UserError:
    """Which number is none, at which step, and which settings to lower."""
    lower = ["training.learning_rate"]
    if plan.training.get("max_grad_norm", 1.0) != 1.0:
        lower.append("training.max_grad_norm (1.0 is usual)")
    advice = f"Lower {' and '.join(lower)}"
    if plan.fp8:
        advice += ", or set compute.frozen_weights: nf4"
    if step == 1:
        advice += ". Nothing was trained before this step: the base model may not work in bf16"
    return UserError(
        f"{what} is {value} at step {step}, with a learning rate of {rate:.2g}.", advice + "."
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


@dataclass
class Counts:
    """What went through the trainer since the last log. Sums stay on the device until then."""

    began: float = field(default_factory=time.monotonic)
    samples: int = 0
    slots: int = 0
    tokens: Any = 0
    targets: Any = 0
    waited: float = 0.0

    def add(self, batches: list[dict[str, Any]], targets: Any, waited: float) -> None:
        """Count the batches of an optimizer step."""
        for batch in batches:
            rows, length = batch["input_ids"].shape
            packed = batch.get("cu_seq_lens_q")
            self.samples += rows if packed is None else len(packed) - 1
            self.slots += rows * length
            mask = batch.get("attention_mask")
            self.tokens = self.tokens + (rows * length if mask is None else mask.sum())
        self.targets = self.targets + (0 if targets is None else targets)
        self.waited += waited

    def speeds(self, ranks: int) -> dict[str, float]:
        """Metrics for a log line: speeds of all ranks, shares of this one."""
        tokens, targets = int(self.tokens), int(self.targets)  # waits for the device
        seconds = time.monotonic() - self.began
        return {
            "tokens_per_second": round(tokens * ranks / seconds, 1),
            "target_tokens_per_second": round(targets / seconds, 1),
            "samples_per_second": round(self.samples * ranks / seconds, 3),
            "fill": round(tokens / max(1, self.slots), 4),
            "data_wait": round(self.waited / seconds, 4),
        }


class CatalogTrainer(SFTTrainer):
    """SFTTrainer that trains on packs, logs speed and memory beside the loss, and stops at the
    first number that is none."""

    layout: Layout
    plan: TrainingPlan
    # Norm of the last step's gradients, with the step and its learning rate, until it is looked at.
    _gradients: tuple[torch.Tensor, int, float] | None = None
    _counts: Counts | None = None
    _weights: int | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Packs that are balanced within each step; padded, the Trainer's own sampler."""
        if self.layout.tokens is None:
            return super()._get_train_sampler(train_dataset)
        return PackSampler(
            self.layout.tokens,
            self.args.per_device_train_batch_size,
            self.args.gradient_accumulation_steps * self.args.world_size,
            self.args.seed,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of a step; counts them, and how long they were waited for."""
        asked = time.monotonic()
        batches, targets = super().get_batch_samples(*args, **kwargs)
        if self._counts is None:  # the first batch has waited for the workers to start
            self._counts = Counts()
            if self.layout.pictures and self.layout.features_cached:
                self.layout.pictures.rest()
        else:
            self._counts.add(batches, targets, time.monotonic() - asked)
        if self.layout.tokens:
            self.state.num_input_tokens_seen += self._tokens_of_all_ranks(batches)
        return batches, targets

    def _tokens_of_all_ranks(self, packs: list[dict[str, Any]]) -> int:
        tokens = sum(pack["input_ids"].numel() for pack in packs)
        if self.accelerator.num_processes == 1:
            return tokens
        return int(self.accelerator.gather(torch.tensor(tokens, device=self.args.device)).sum())

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The Trainer's own count, but weights are counted once: it walks the whole model after
        each pack, while the GPU has nothing to do."""
        if self._weights is None:
            self._weights = self.model.num_parameters(exclude_embeddings=True)
        return 6 * self._weights * inputs["input_ids"].numel()

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, which must be a number. TRL has waited for the device to log its own
        figures, so looking at the loss and at the last step's gradients costs no time."""
        found = self._loss_of(model, inputs, *args, **kwargs)
        self._require_finite_gradients()
        loss = found[0] if isinstance(found, tuple) else found
        if model.training:
            self._require_finite("the loss", loss, self.state.global_step + 1)
        else:
            self._require_finite("the held-out loss", loss, self.state.global_step)
        return found

    def _loss_of(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A pack's picture features go around the model's arguments."""
        if self.layout.pictures is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        self.layout.damaged += inputs.pop(DAMAGED, 0)
        given = inputs.pop(PICTURES, None)
        if isinstance(given, list):
            encode = self.layout.pictures.encode
            given = [each for count, row in given for each in encode(row, count)]
        if features := inputs.pop(FEATURES, None):
            given = one_by_one(features)
        if given:
            inputs[PICTURE_INPUT] = self.layout.pictures.placeholder()
        with self.layout.pictures.given(given):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed, waiting and memory since the last log to a training log."""
        self._require_finite_gradients()
        if "loss" in logs:
            if self._counts and self._counts.samples:
                logs.update(self._counts.speeds(self.accelerator.num_processes))
            self._counts = Counts()
            logs["memory_gib"] = memory_gib()
            # TRL takes a pack for one token.
            self._metrics["train"]["num_tokens"] = [float(self.state.num_input_tokens_seen)]
        super().log(logs, start_time)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of a step's gradients, kept to be looked at when the device is done with it."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None:  # which skips steps whose fp16 gradients overflow
            self._gradients = (norm, self.state.global_step + 1, self._get_learning_rate())
        return norm

    def _require_finite_gradients(self) -> None:
        if self._gradients:
            norm, step, rate = self._gradients
            self._gradients = None
            self._require_finite("the norm of the gradients", norm, step, rate)

    def _require_finite(
        self, what: str, value: torch.Tensor, step: int, rate: float | None = None
    ) -> None:
        if not math.isfinite(number := float(value.detach())):
            rate = self._get_learning_rate() if rate is None else rate
            raise not_finite(what, number, step, rate, self.plan)

    def require_finite_weights(self) -> None:
        """Raise UserError unless all that is trained are numbers, after the last step too."""
        self._require_finite_gradients()
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        norm = torch.nn.utils.get_total_norm(weights, float("inf"))
        self._require_finite("the largest weight of the adapter", norm, self.state.global_step)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save a training that can be gone on from."""
        self.require_finite_weights()
        super()._save_checkpoint(*args, **kwargs)
