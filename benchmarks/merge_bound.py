"""What the checks of a merge let pass and what they stop, with Qwen2-VL-7B's shapes on a GPU.

    python benchmarks/merge_bound.py           # one GPU with 80 GB
    python benchmarks/merge_bound.py --head 2  # the same with less flat outputs
    python benchmarks/merge_bound.py --disk    # one merge as a run makes it, through files
    python benchmarks/merge_bound.py --tiny    # the demo's model, on a CPU

Random bf16 weights; LoRA adapters that change the base by a mean KL of 0.03 to 1 nat on the rows
that are checked. Some are random, with B scaled to that change. Others are trained on the rows
until they get there: their weights are smaller for the same change, so that rounding to nearest
would lose a part of them. Each is merged as it should be, and in ways that it should not: without a
layer's adapter, with a tensor's sign flipped, with the scale doubled. An adapter that can't change
its base as much is left out: outputs of random weights are flat, and there is only so much to
change in them.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CHANGES = (0.03, 0.1, 0.3, 1.0)  # nats a token
WITHIN = 0.1  # of these, relative
ALL_LINEAR = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
KINDS = {
    "r=8 q,v random": {"r": 8, "target_modules": r".*language_model.*\.(q|v)_proj"},
    "r=16 all random": {"r": 16, "target_modules": ALL_LINEAR},
    "r=8 q,v trained": {"r": 8, "target_modules": r".*language_model.*\.(q|v)_proj"},
    "r=16 all trained": {"r": 16, "target_modules": ALL_LINEAR},
}
SPOILED = (0.1, 1.0)  # the others are merged as they should be only
LEARNING_RATE, MOST_STEPS, MOST_TRIES = 2e-4, 40, 12
FAULTS = (
    "as it should be",
    "first layer dropped",
    "middle layer dropped",
    "last layer dropped",
    "a sign flipped",
    "scale doubled",
)
HEAD = (
    "| adapter | merge | change | noise | merged | / noise | / change | adapter | weights "
    "| divergence | passes |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Print a line for each adapter and merge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--disk", action="store_true")
    parser.add_argument("--head", type=float, default=1.0, help="factor on the output layer")
    options = parser.parse_args()
    from vlmtune.environment import prepare_environment

    prepare_environment()
    start = time.monotonic()
    bench = Bench(options.tiny, options.head)
    if options.disk:
        bench.merge_through_files()
    else:
        print(HEAD)
        for kind in KINDS:
            bench.try_adapters(kind)
            print(f"{kind}: {time.monotonic() - start:.0f} s since the start", file=sys.stderr)


class Bench:
    """A model, the rows that are checked, and a copy of its weights to begin again from."""

    def __init__(self, tiny: bool, head: float) -> None:
        from transformers import AutoProcessor

        from benchmarks.merge_model import make_rows
        from benchmarks.seven_b import build_unquantised
        from vlmtune.config.model import ModelConfig
        from vlmtune.models.quantized import load_model

        self.processor = AutoProcessor.from_pretrained(ROOT / "demo" / "model")
        if tiny:
            config = ModelConfig(id=str(ROOT / "demo" / "model"), device="cpu")
            self.model = load_model(config.id, None, config, quantization={})
        else:
            self.model = build_unquantised(self.processor, tiny)
        self.model.requires_grad_(False)
        self.model.get_output_embeddings().weight.data *= head
        decoder = self.model.get_decoder()
        self.weights = {name: each.clone() for name, each in decoder.named_parameters()}
        self.rows = make_rows()

    def logits(self, model: Any) -> Iterator[Any]:
        """As the library takes them, but compared on the GPU, which is faster."""
        from vlmtune.models.merge_checks import answer_logits

        for row in answer_logits(model, self.processor, self.rows):
            yield row.to(model.device)

    def make_adapter(self, kind: str) -> Any:
        """A fresh adapter of a kind, of random weights or of none yet."""
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(init_lora_weights="trained" in kind, lora_alpha=16, **KINDS[kind])
        model = get_peft_model(self.model, config).eval()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data *= 0.02  # about as small as training leaves it
        return model

    def change(self, model: Any, base: list[Any]) -> float:
        """Mean KL from base and adapter to the base."""
        from vlmtune.models.merge_checks import measure_distance

        return measure_distance(self.logits(model), base).kl

    def scale(self, model: Any, base: list[Any], target: float) -> bool:
        """Scale B until the adapter changes this much: KL grows about with its square."""
        weights = [each for name, each in model.named_parameters() if "lora_B" in name]
        for _ in range(MOST_TRIES):
            found = self.change(model, base)
            if abs(math.log(found / target)) < WITHIN:
                return True
            factor = min(max((target / found) ** 0.5, 0.2), 3.0)
            for weight in weights:
                weight.data *= factor
        return False

    def train(self, model: Any, base: list[Any], target: float) -> bool:
        """Train on the rows until the adapter changes more, and go back within the last step."""
        import torch

        trained = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0)
        found = self.change(model, base)
        for _ in range(MOST_STEPS):
            if found > target:
                break
            before = [each.detach().clone() for each in trained]
            for batch in self.batches(model.device):
                model(**batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found = self.change(model, base)
        low, high = 0.0, 1.0
        after = [each.detach().clone() for each in trained]
        for _ in range(MOST_TRIES):
            if abs(math.log(found / target)) < WITHIN:
                return True
            share = (low + high) / 2
            for each, one, other in zip(trained, before, after, strict=True):
                each.data.copy_(one + share * (other - one))
            found = self.change(model, base)
            low, high = (share, high) if found < target else (low, share)
        return False

    def batches(self, device: Any) -> Iterator[dict[str, Any]]:
        """The rows to train on."""
        import torch

        from vlmtune.encoding import CatalogCollator

        collator = CatalogCollator(processor=self.processor, completion_only_loss=True)
        for row in self.rows:
            batch = collator([{name: row[name] for name in ("prompt", "completion", "images")}])
            yield {
                name: value.to(device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }

    def try_adapters(self, kind: str) -> None:
        """Make adapters of a kind, each changing more than the one before, and merge them."""
        from vlmtune.models.adapter import save_adapter
        from vlmtune.models.base_model import BaseModelRef

        base = list(self.logits(self.model))
        model = self.make_adapter(kind)
        with tempfile.TemporaryDirectory() as scratch:
            made = []
            for target in CHANGES:
                if (self.train if "trained" in kind else self.scale)(model, base, target):
                    made.append(target)
                    folder = Path(scratch) / str(target)
                    save_adapter(model, self.processor, BaseModelRef(id="base"), folder)
                else:
                    print(f"{kind}: no change of {target}", file=sys.stderr)
                    break
            self.model = model.unload()
            for target in made:
                self.try_adapter(kind, target, Path(scratch) / str(target))

    def try_adapter(self, kind: str, target: float, folder: Path) -> None:
        """Measure an adapter's change and noise, merge it in all ways, print a line for each."""
        from peft import PeftModel

        from vlmtune.models.adapter import without_adapter
        from vlmtune.models.merge_checks import measure_distance
        from vlmtune.models.merged_weights import add_rounding_noise

        model = PeftModel.from_pretrained(self.model, folder).eval()
        tuned = list(self.logits(model))
        with without_adapter(model) as bare:
            change = measure_distance(tuned, self.logits(bare))
        add_rounding_noise(model)
        noise = measure_distance(tuned, self.logits(model))
        add_rounding_noise(model)  # takes it back
        self.model = model.unload()
        assert self.restored(), "noise was not taken back"
        for fault in FAULTS if target in SPOILED else FAULTS[:1]:
            self.merge(folder, f"{kind}, {target} | {fault}", tuned, change, noise)

    def merge(self, folder: Path, name: str, tuned: Any, change: Any, noise: Any) -> None:
        """Merge, with a fault or none, and print what the checks say."""
        from peft import PeftModel

        from vlmtune.config.publishing import MAX_RELATIVE_DIVERGENCE
        from vlmtune.models.merge_checks import (
            check_adapter_works,
            check_divergence,
            measure_distance,
        )
        from vlmtune.models.merged_weights import merge_layers

        model = PeftModel.from_pretrained(self.model, folder).eval()
        spoil(model, name.rpartition("| ")[2])
        merged, weights = merge_layers(model, folder)
        divergence = measure_distance(tuned, self.logits(merged))
        checks = [
            check_adapter_works(change, noise),
            weights,
            check_divergence(divergence, change, noise, MAX_RELATIVE_DIVERGENCE),
        ]
        told = " | ".join("yes" if check.met else "NO" for check in checks)
        passes = "yes" if all(check.met for check in checks) else "NO"
        kl = divergence.kl
        print(
            f"| {name} | {change.kl:.3g} | {noise.kl:.3g} | {kl:.3g} | {kl / noise.kl:.3g} "
            f"| {kl / change.kl:.4f} | {told} | {passes} |",
            flush=True,
        )
        self.model = merged
        self.restore()

    def restored(self) -> bool:
        """Whether each weight of the decoder is what it was, bit for bit."""
        import torch

        named = self.model.get_decoder().named_parameters()
        return all(torch.equal(each, self.weights[name]) for name, each in named)

    def restore(self) -> None:
        """The base's weights again."""
        for name, each in self.model.get_decoder().named_parameters():
            each.data.copy_(self.weights[name])

    def merge_through_files(self) -> None:
        """One merge as the pipeline makes it: loaded, merged, written, read back, all checks."""
        from vlmtune.config.model import ModelConfig
        from vlmtune.models.adapter import Adapter, AdapterRecord, save_adapter
        from vlmtune.models.base_model import BaseModelRef
        from vlmtune.models.merging import merge

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            base = BaseModelRef(id=str(folder / "base"))
            self.model.save_pretrained(base.id, max_shard_size="2GB")
            self.processor.save_pretrained(base.id)
            before = list(self.logits(self.model))
            model = self.make_adapter("r=16 all random")
            assert self.scale(model, before, 0.1)
            save_adapter(model, self.processor, base, folder / "adapter")
            del model, before, self.model, self.weights
            adapter = Adapter(folder / "adapter", AdapterRecord(base=base))
            start = time.monotonic()
            result = merge(adapter, ModelConfig(id=base.id), self.rows, folder / "merged")
            print(f"through files: {result.record.status} in {time.monotonic() - start:.0f} s")
            for check in result.record.checks:
                print(f"- {check.name}: wanted {check.wanted}; found {check.found}")


def spoil(model: Any, fault: str) -> None:
    """Make PEFT merge wrongly: through its layers' scaling, which the checks do not read."""
    from peft.tuners.lora import LoraLayer

    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    count = 1 + max(int(name.split(".layers.")[1].split(".")[0]) for name in layers)
    which = {"first": 0, "middle": count // 2, "last": count - 1}
    if fault.endswith("dropped"):
        number = which[fault.split()[0]]
        chosen = {name: 0.0 for name in layers if f".layers.{number}." in name}
    elif fault == "a sign flipped":
        chosen = {next(name for name in layers if f".layers.{count // 2}." in name): -1.0}
    elif fault == "scale doubled":
        chosen = dict.fromkeys(layers, 2.0)
    else:
        chosen = {}
    for name, factor in chosen.items():
        layers[name].scaling["default"] *= factor


if __name__ == "__main__":
    main()
