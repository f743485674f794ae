"""Speed and memory of QLoRA on Qwen2-VL-7B's exact shapes, side by side with TRL.

    python benchmarks/train_qlora.py                 # all variants, on one GPU
    python benchmarks/train_qlora.py --tiny          # a smoke test on a CPU
    python benchmarks/train_qlora.py --only ours     # variants whose name begins so

Rows are JPEG files of 224 to 644 pixels a side and texts of many lengths, read by the product's
own catalog code; weights are random (speed does not depend on them), in NF4 with double
quantisation; LoRA r=8 on q_proj and v_proj; 32 rows an optimizer step in every variant.

Variants run in turn, in processes by kind (Liger's kernels and fp8 weights cannot be taken out
again), in several rounds. A step's time is the mean over the steps after the first two: one whole
epoch of TRL's (rows that are grouped by length make some steps much longer than others), the rest
of all epochs of ours. Useful FLOPs are 4 x (decoder weights) x tokens: forward and gradients of
activations, neither recomputation nor padding, vision tower or head.
"""

import argparse
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from seven_b import (  # noqa: E402 - the path is set first
    LORA,
    QUANTIZATION,
    build_model,
    configuration,
    decoder_weights,
    make_catalog,
    memory,
)

ROWS_PER_STEP = 32
SKIPPED = 2  # first steps: kernels are compiled, workers start, memory is reserved


def variants() -> dict[str, dict[str, Any]]:
    """Name -> how to train. `packs` means ours, `batch` means TRL's SFTTrainer."""
    found: dict[str, dict[str, Any]] = {}
    found["recipe"] = {"batch": 4, "checkpointing": True, "recipe": True}
    for checkpointing in (True, False):
        mode = "checkpointing" if checkpointing else "none"
        for liger in (False, True):
            for grouped in (False, True):
                for batch in (4, 8, 16, 32):
                    name = f"trl-{mode}-{batch}" + "-liger" * liger + "-grouped" * grouped
                    found[name] = {
                        "batch": batch,
                        "checkpointing": checkpointing,
                        "liger": liger,
                        "grouped": grouped,
                    }
        for limit in (6_000, 11_000, 22_000):
            ours = {"packs": limit, "checkpointing": checkpointing}
            found[f"ours-{mode}-{limit}"] = ours
            found[f"bare-{mode}-{limit}"] = {**ours, "bare": True}
            found[f"bare-fp8-{mode}-{limit}"] = {
                **ours,
                "bare": True,
                "compiled": True,
                "fp8": True,
            }
            found[f"compiled-{mode}-{limit}"] = {**ours, "compiled": True}
            found[f"fp8-{mode}-{limit}"] = {**ours, "compiled": True, "fp8": True}
    return found


def main() -> None:
    """Run the variants in turn and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=640, help="20 steps an epoch")
    parser.add_argument("--epochs", type=int, default=2, help="of our variants")
    parser.add_argument("--steps", type=int, help="of TRL's variants; by default one epoch")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="the demo's model, on any machine")
    parser.add_argument("--only", nargs="+", default=[""], help="variants, or beginnings of them")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no variant after so long")
    parser.add_argument("--results", type=Path, default=Path("train_qlora.jsonl"))
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--catalog", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or options.rows // ROWS_PER_STEP
    if options.run:
        measure_all(options)
        return
    beginnings = tuple(each for each in options.only if each not in variants())
    names = [name for name in variants() if name in options.only or name.startswith(beginnings)]
    kinds = [[], [name for name in names if uses_liger(variants()[name])]]
    kinds[0] = [n for n in names if n not in kinds[1] and not variants()[n].get("fp8")]
    kinds += [[name] for name in names if variants()[name].get("fp8")]
    with tempfile.TemporaryDirectory() as folder:
        make_catalog(Path(folder), options.rows)
        start = time.monotonic()
        for group in kinds * options.rounds:
            left = options.seconds - (time.monotonic() - start)
            if group and left > 0:
                flags = ["--run", *group, "--catalog", folder, "--seconds", str(left)]
                subprocess.run([sys.executable, __file__, *sys.argv[1:], *flags], check=False)
    print_table(options.results)


def uses_liger(variant: dict[str, Any]) -> bool:
    """Whether Liger's kernels are put into the model."""
    return bool(variant.get("liger")) or ("packs" in variant and not variant.get("compiled"))


def read_rows(config: Any, processor: Any) -> Any:
    """The catalog's rows as the product reads them, all of them for training."""
    from datasets import concatenate_datasets

    from vlmtune.catalog.loading import load_catalog
    from vlmtune.catalog.source import catalog_version
    from vlmtune.prompting import format_examples, with_pictures
    from vlmtune.row_size import RowSizer

    sizer = RowSizer(processor, config.prompt, None)
    catalog, ledger = load_catalog(config.data, catalog_version(config.data), sizer=sizer)
    examples = format_examples(catalog, ledger, config.data, config.prompt)
    rows = concatenate_datasets([examples.train, examples.held_out])
    return with_pictures(rows, catalog)


TRAINING = {
    "optim": "adamw_torch_fused",
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "max_grad_norm": 0.3,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "bf16": True,
    "disable_tqdm": True,
}


def measure_all(options: argparse.Namespace) -> None:
    """Run some variants on one model, in this process."""
    import torch

    from vlmtune.models.processor import load_processor
    from vlmtune.training.memory_plan import matrix_ceiling

    logging.basicConfig(level=logging.INFO, format="  %(message)s")
    start = time.monotonic()
    config = configuration(options.catalog, options.tiny)
    processor = load_processor(config.model.id, None, config.model)
    rows = read_rows(config, processor)
    print(f"{len(rows)} rows of {mean_tokens(rows):.0f} tokens")
    model = build_model(processor, options.tiny)
    weights = decoder_weights(model)
    ceiling = matrix_ceiling() if torch.cuda.is_available() else 1.0
    empty = memory(peak=False)
    print(f"model: {empty:.2f} GiB; {ceiling:.0f} TFLOP/s; {time.monotonic() - start:.0f} s")
    for name in options.run:
        if time.monotonic() - start > options.seconds:
            print("no time left for", name)
            continue
        variant = variants()[name]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        try:
            train = train_ours if "packs" in variant else train_trl
            result = train(model, processor, rows, variant, options)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            result = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        finally:
            take_out_adapter(model)
        result = {"name": name, "wall": round(time.monotonic() - began, 1), **result}
        if "tokens_per_second" in result:
            useful = 4 * weights * result["tokens_per_second"] / 1e12
            result |= {"useful_tflops": round(useful), "share": round(useful / ceiling, 3)}
        print(json.dumps(result), flush=True)
        gc.collect()
        with options.results.open("a") as file:
            file.write(json.dumps(result) + "\n")


class StepTimes:
    """A Trainer callback that times whole optimizer steps, waiting for data included."""

    def __new__(cls) -> Any:
        import torch
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            def __init__(self) -> None:
                self.times: list[float] = []
                self.last = 0.0

            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                self.last = time.monotonic()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                    if state.global_step == 1:
                        torch.cuda.reset_peak_memory_stats()
                now = time.monotonic()
                self.times.append(now - self.last)
                self.last = now

        return Callback()


def workers() -> int:
    """Input workers of every variant but the recipe."""
    return min(12, (os.cpu_count() or 1) - 1)


def train_trl(
    model: Any, processor: Any, rows: Any, variant: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """TRL's SFTTrainer with its own collator."""
    import torch
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        grouped = {"train_sampling_strategy": "group_by_length", "length_column_name": "tokens"}
        arguments = SFTConfig(
            **TRAINING,
            **(grouped if variant.get("grouped") else {}),
            output_dir=folder,
            per_device_train_batch_size=variant["batch"],
            gradient_accumulation_steps=ROWS_PER_STEP // variant["batch"],
            gradient_checkpointing=variant["checkpointing"],
            gradient_checkpointing_kwargs={"use_reentrant": False},
            use_liger_kernel=variant.get("liger", False),
            completion_only_loss=not variant.get("recipe"),
            dataloader_num_workers=0 if variant.get("recipe") else workers(),
            max_steps=SKIPPED + options.steps,
            remove_unused_columns=False,
            max_length=None,
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
        )
        times = StepTimes()
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            peft_config=LoraConfig(**LORA),
            processing_class=processor,
            train_dataset=rows,
            callbacks=[times],
        )
        trainer.train()
    seconds = statistics.mean(times.times[SKIPPED:])
    return {
        "samples_per_second": round(ROWS_PER_STEP / seconds, 2),
        "tokens_per_second": round(ROWS_PER_STEP * mean_tokens(rows) / seconds),
        "peak_gib": memory(),
        "loss": trainer.state.log_history[0].get("loss"),
    }


def train_ours(
    model: Any, processor: Any, rows: Any, variant: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """The product's own trainer, or a bare loop on its packs."""
    import torch

    from vlmtune.models.base_model import BaseModelRef
    from vlmtune.training.trainer import build_trainer

    with tempfile.TemporaryDirectory() as folder:
        plan = plan_ours(Path(folder), variant, options.epochs)
        began = time.monotonic()
        base = BaseModelRef(id="random", content_hash="0" * 64)
        trainer = build_trainer(
            model, processor, base, rows, rows.select(range(2)), plan, lambda *_: None
        )
        prepared = time.monotonic() - began
        calls = trainer.layout.pictures.calls
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run = bare_loop(trainer, options.epochs) if variant.get("bare") else own_loop(trainer)
        trainer.layout.close()
        whole = time.monotonic() - began
    seconds = run.pop("seconds")
    planned = trainer.layout.facts.get("planned_memory", {})
    return {
        "samples_per_second": round(ROWS_PER_STEP / seconds, 2),
        "tokens_per_second": round(ROWS_PER_STEP * mean_tokens(rows) / seconds),
        "planned_gib": planned.get("peak_gib"),
        "largest_pack": trainer.layout.largest_pack,
        "tower_calls_in_training": trainer.layout.pictures.calls - calls,
        "prepare_seconds": round(prepared, 1),
        "whole_run_samples_per_second": round(len(rows) * options.epochs / whole, 2),
        **run,
    }


def plan_ours(folder: Path, variant: dict[str, Any], epochs: int) -> Any:
    """What the product's trainer is told."""
    import torch

    from vlmtune.config.training import PackingConfig
    from vlmtune.training.plan import TrainingPlan

    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = {
        **TRAINING,
        "per_device_train_batch_size": ROWS_PER_STEP,
        "gradient_checkpointing": variant["checkpointing"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "num_train_epochs": epochs,
        "dataloader_num_workers": workers() if device == "cuda" else 0,
        "completion_only_loss": True,
    }
    if variant.get("compiled"):
        training["torch_compile"] = True
    return TrainingPlan(
        0,
        LORA,
        training,
        device,
        folder / "run",
        packing=PackingConfig(max_tokens=variant["packs"]),
        features=folder / "features",
        quantization=QUANTIZATION,
        fp8=variant.get("fp8", False),
    )


def own_loop(trainer: Any) -> dict[str, Any]:
    """Train; seconds of a step, peak, share of the time that was spent waiting for data."""
    times = StepTimes()
    trainer.add_callback(times)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "data_wait" in log]
    waited = statistics.mean(log["data_wait"] for log in logs[SKIPPED - 1 :])
    return {
        "seconds": statistics.mean(times.times[SKIPPED:]),
        "peak_gib": memory(),
        "data_wait": round(waited, 4),
        "loss": trainer.state.log_history[0].get("loss"),
    }


def bare_loop(trainer: Any, epochs: int) -> dict[str, Any]:
    """The same packs and model in a plain loop: everything on the card beforehand."""
    import torch

    from vlmtune.training.packing import FEATURES, one_by_one

    model, pictures = trainer.model, trainer.layout.pictures
    if trainer.args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-4, fused=torch.cuda.is_available())
    packs = list(trainer.get_train_dataloader())
    pictures.rest()
    accumulate = trainer.args.gradient_accumulation_steps
    device = weights[0].device.type
    times: list[float] = []
    for _ in range(epochs):
        for at in range(0, len(packs), accumulate):
            began = time.monotonic()
            step = packs[at : at + accumulate]
            targets = sum(int((pack["labels"] != -100).sum()) for pack in step)
            for pack in step:
                batch = dict(pack)
                features = batch.pop(FEATURES)
                given = one_by_one(features)
                with pictures.given(given), torch.autocast(device, torch.bfloat16):
                    batch["pixel_values"] = pictures.placeholder()
                    output = model(**batch, use_cache=False, fused_lm_head=True)
                loss = -output.log_probs.sum() / targets
                loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 0.3)
            optimizer.step()
            optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.monotonic() - began)
    return {"seconds": statistics.mean(times[SKIPPED:]), "peak_gib": memory()}


def take_out_adapter(model: Any) -> None:
    """Leave the model as it was before a variant."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(module, name, child.get_base_layer())
        module.__dict__.pop("_compiled_call_impl", None)
        module._compiled_call_impl = None
    model.__dict__.pop("forward", None)
    model.gradient_checkpointing_disable()
    model.base_model.__dict__.pop("get_image_features", None)
    model.config._attn_implementation = "sdpa"
    for hook in ("_require_grads_hook", "_require_grads_hooks"):
        for handle in [getattr(model, hook, None) or []]:
            for each in handle if isinstance(handle, list) else [handle]:
                each.remove()
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(False)


def mean_tokens(rows: Any) -> float:
    """Tokens of a row."""
    return statistics.mean(rows.with_format(None)["tokens"])


def print_table(results: Path) -> None:
    """Medians over the rounds, as Markdown."""
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    print("| variant | samples/s | tokens/s | peak GiB | planned | TFLOP/s | share | data wait |")
    print("|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(line["name"] for line in lines):
        rounds = [line for line in lines if line["name"] == name]
        if any("error" in line for line in rounds):
            print(f"| {name} | {rounds[0].get('error')} |")
            continue
        keys = ("samples_per_second", "tokens_per_second", "peak_gib", "planned_gib")
        keys += ("useful_tflops", "share", "data_wait")
        cells = [
            f"{statistics.median(line[key] for line in rounds):g}"
            if rounds[0].get(key) is not None
            else ""
            for key in keys
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
