"""The loss of each step, packed by vlmtune and padded by TRL, on the same rows.

    python benchmarks/compare_losses.py               # 100 steps of 32 rows, on a CPU
    python benchmarks/compare_losses.py --fp32        # without the rounding of bf16
    python benchmarks/compare_losses.py --fp8         # ours with frozen weights in fp8
    python benchmarks/compare_losses.py --trl-adapter # TRL's own dtype of the adapter, bf16

The demo's model learns the demo's catalog twice from the same first adapter: by TRL's SFTTrainer
with its own collator in batches of 4 x 8, and by vlmtune in packs. No dropout, since its random
numbers fall on other tokens in a pack.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vlmtune.environment import prepare_environment  # noqa: E402

ROWS_PER_STEP = 32
SEED = 1
TRAINING = {
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "max_grad_norm": 0.3,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "optim": "adamw_torch",
}


def main() -> None:
    """Train twice and print how far the losses lie apart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pack-tokens", type=int, default=1_500, help="in a pack")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--fp32", action="store_true", help="compute in fp32")
    parser.add_argument("--fp8", action="store_true", help="hold ours in fp8")
    parser.add_argument("--trl-adapter", action="store_true", help="do not hold TRL's in fp32")
    options = parser.parse_args()
    config, rows, base = demo_rows()
    prepare_environment()
    TRAINING.update(learning_rate=options.learning_rate, bf16=not options.fp32)
    packed, order = train_packed(config, rows, base, options)
    padded = train_padded(config, rows.select(order), options)
    apart = [abs(one - other) / other for one, other in zip(packed, padded, strict=True)]
    for step in sorted({0, *range(9, len(apart), 10), len(apart) - 1}):
        print(f"step {step + 1:>4}: packed {packed[step]:.5f}, padded {padded[step]:.5f}")
    print(
        f"{len(apart)} steps: at most {max(apart):.2%} apart, {statistics.median(apart):.3%} in "
        f"the median; the loss fell from {padded[0]:.3f} to {padded[-1]:.3f}"
    )


def demo_rows() -> tuple[Any, Any, Any]:
    """The demo's configuration, whole steps of its training rows, and its base model."""
    from vlmtune.catalog.loading import load_catalog
    from vlmtune.catalog.source import catalog_version
    from vlmtune.config.loading import load_config
    from vlmtune.models.base_model import resolve_base_model
    from vlmtune.prompting import format_examples, with_pictures

    places = [f"data.source={ROOT}/demo/catalog", f"model.id={ROOT}/demo/model"]
    config = load_config(ROOT / "configs" / "demo.yaml", places)
    catalog, ledger = load_catalog(config.data, catalog_version(config.data))
    train = format_examples(catalog, ledger, config.data, config.prompt).train
    whole = len(train) // ROWS_PER_STEP * ROWS_PER_STEP
    return (
        config,
        with_pictures(train.select(range(whole)), catalog),
        resolve_base_model(config.model),
    )


def fresh_model(config: Any, fp32: bool) -> tuple[Any, Any]:
    """The quantised base and its processor."""
    import torch

    from vlmtune.models.base_model import resolve_base_model
    from vlmtune.models.quantized import quantize

    made = quantize(resolve_base_model(config.model), config.model, config.quantization)
    if fp32:
        for module in made.model.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = torch.float32
        for weight in made.model.parameters():
            if weight.is_floating_point():
                weight.data = weight.data.float()
    return made.model, made.processor


def train_packed(
    config: Any, rows: Any, base: Any, options: argparse.Namespace
) -> tuple[list[float], list[int]]:
    """The product's own trainer: losses, and the rows of each step one after the other."""
    from vlmtune.config.training import PackingConfig
    from vlmtune.training.plan import TrainingPlan
    from vlmtune.training.trainer import build_trainer

    training = {
        **TRAINING,
        "per_device_train_batch_size": ROWS_PER_STEP,
        "max_steps": options.steps,
    }
    with tempfile.TemporaryDirectory() as folder:
        plan = TrainingPlan(
            SEED,
            {**config.lora, "lora_dropout": 0.0},
            training,
            "cpu",
            Path(folder) / "run",
            packing=PackingConfig(max_tokens=options.pack_tokens),
            features=Path(folder) / "features",
            fp8=options.fp8,
        )
        trainer = build_trainer(
            *fresh_model(config, options.fp32),
            base,
            rows,
            rows.select(range(2)),
            plan,
            lambda *_: None,
        )
        print("packed:", trainer.layout.facts)
        trainer.train()
        sampler = trainer._get_train_sampler()
        trainer.layout.close()
    order: list[int] = []
    for epoch in range(-(-options.steps * ROWS_PER_STEP // len(rows))):
        sampler.set_epoch(epoch)
        order += list(sampler)
    return losses(trainer), order[: options.steps * ROWS_PER_STEP]


def train_padded(config: Any, rows: Any, options: argparse.Namespace) -> list[float]:
    """TRL's SFTTrainer on the rows as they lie."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    from vlmtune.training.trainer import _keep_adapter_in_fp32

    model, processor = fresh_model(config, options.fp32)
    set_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            **TRAINING,
            output_dir=folder,
            seed=SEED,
            use_cpu=True,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=ROWS_PER_STEP // 4,
            train_sampling_strategy="sequential",
            max_steps=options.steps,
            completion_only_loss=True,
            remove_unused_columns=False,
            max_length=None,
            report_to=[],
        )
        trainer = SFTTrainer(
            model=get_peft_model(model, LoraConfig(**{**config.lora, "lora_dropout": 0.0})),
            args=arguments,
            processing_class=processor,
            train_dataset=rows,
        )
        if not options.trl_adapter:
            _keep_adapter_in_fp32(trainer.model)
        trainer.train()
    return losses(trainer)


def losses(trainer: Any) -> list[float]:
    """The loss of each step."""
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


if __name__ == "__main__":
    main()
