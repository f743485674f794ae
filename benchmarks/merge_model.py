"""How much memory a merge takes, against the size of the model's weights, on a CPU.

    python benchmarks/merge_model.py                            # 1.1 GiB of weights
    python benchmarks/merge_model.py --layers 28 --hidden 3584  # Qwen2-VL-7B's language model

A Qwen2-VL with random bf16 weights and a random LoRA adapter on every linear layer of its language
model are made in one process and merged in another, as a run does it: outputs of base and adapter,
merge, save, hashes, reading back, outputs of the merged model.

Memory is the process's peak above what it held with everything imported: anonymous memory (what
it holds) and resident memory (with the pages of files that the kernel keeps mapped and may drop at
any time: on a CPU, transformers maps the weights of a model that it loads).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
VOCABULARY = 152_064  # of Qwen2-VL-7B, as are the proportions below
HEAD_SIZE = 128
KINDS = ("anonymous", "resident")
ROWS, PICTURE_SIDE, ANSWER = 8, 112, "A soft warm mug for quiet mornings, made to be kept. " * 8


def main() -> None:
    """Make a model, merge an adapter into it, and print the peak of memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_model(options.make, options.layers, options.hidden)
    elif options.measure:
        print(json.dumps(measure(options.measure)))
    else:
        report(options)


def report(options: argparse.Namespace) -> None:
    """Run both parts and print a line of the table."""
    sizes = ["--layers", str(options.layers), "--hidden", str(options.hidden)]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, *sizes]
        subprocess.run([*command, "--make", scratch], check=True)
        done = subprocess.run(
            [*command, "--measure", scratch], stdout=subprocess.PIPE, text=True, check=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    weights = found["weights"]
    print("| layers | hidden | weights GiB | anonymous GiB | resident GiB | seconds |")
    print("|---|---|---|---|---|---|")
    memory = [f"{found[kind]:.2f} ({found[kind] / weights:.2f} x)" for kind in KINDS]
    print(
        f"| {options.layers} | {options.hidden:,} | {weights:.2f} | {' | '.join(memory)} "
        f"| {found['seconds']:.0f} |"
    )
    print(f"\n{found['status']}; {found['checks']}")


def make_model(folder: Path, layers: int, hidden: int) -> None:
    """Random weights with the proportions of Qwen2-VL-7B's language model, and an adapter."""
    from vlmtune.environment import prepare_environment

    prepare_environment()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from vlmtune.models.adapter import save_adapter
    from vlmtune.models.base_model import BaseModelRef

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(ROOT / "demo" / "model")
    heads = hidden // HEAD_SIZE
    for name, value in {
        "hidden_size": hidden,
        "intermediate_size": round(hidden * 5.286 / 64) * 64,
        "num_hidden_layers": layers,
        "layer_types": ["full_attention"] * layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 4 if heads % 4 == 0 else 1,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "rope_parameters": config.text_config.rope_parameters | {"mrope_section": [16, 24, 24]},
    }.items():
        setattr(config.text_config, name, value)
    config.tie_word_embeddings = False
    config.vision_config.hidden_size = hidden
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    processor = AutoProcessor.from_pretrained(ROOT / "demo" / "model")
    base = BaseModelRef(id=str(folder / "base"))
    model.save_pretrained(base.id, max_shard_size="2GB")
    processor.save_pretrained(base.id)
    lora = LoraConfig(
        r=16,
        target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
        init_lora_weights=False,
    )
    tuned = get_peft_model(model, lora)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:  # changes well above rounding noise
            weight.data *= 0.2
    save_adapter(tuned, processor, base, folder / "adapter")


def measure(folder: Path) -> dict[str, Any]:
    """Merge, and note the peaks of this process's memory in GiB."""
    from vlmtune.environment import prepare_environment

    prepare_environment()
    # Imported before memory is measured: torch and its like take half a GiB, whatever the model.
    from peft import PeftModel  # noqa: F401
    from transformers import AutoModelForImageTextToText  # noqa: F401

    import vlmtune.models.merge_checks  # noqa: F401
    from benchmarks.load_catalog import PeakMemory
    from vlmtune.config.model import ModelConfig
    from vlmtune.models.adapter import Adapter, AdapterRecord
    from vlmtune.models.base_model import BaseModelRef
    from vlmtune.models.merging import merge

    base = BaseModelRef(id=str(folder / "base"))
    adapter = Adapter(folder / "adapter", AdapterRecord(base=base))
    config = ModelConfig(id=base.id, device="cpu")
    rows = make_rows()
    before = PeakMemory()
    time.sleep(0.2)
    idle = before.stop()
    memory = PeakMemory()
    start = time.monotonic()
    result = merge(adapter, config, rows, folder / "merged")
    seconds = time.monotonic() - start
    weights = sum(file.stat().st_size for file in Path(base.id).glob("*.safetensors"))
    peak = memory.stop()
    return {kind: peak[kind] - idle[kind] for kind in KINDS} | {
        "weights": weights / 2**30,
        "seconds": seconds,
        "status": result.record.status,
        "checks": "; ".join(f"{check.name}: {check.found}" for check in result.record.checks),
    }


def make_rows() -> Any:
    """A few products with pictures of noise."""
    import numpy
    from datasets import Dataset
    from PIL import Image

    random = numpy.random.default_rng(0)
    shape = (PICTURE_SIDE, PICTURE_SIDE, 3)
    pictures = [Image.fromarray(random.integers(0, 256, shape, "uint8")) for _ in range(ROWS)]
    texts = [
        {
            "row": number,
            "prompt": [{"role": "user", "content": f"Describe mug {number}."}],
            "completion": [{"role": "assistant", "content": ANSWER.strip()}],
        }
        for number in range(ROWS)
    ]
    return Dataset.from_list(texts).with_transform(
        lambda batch: {**batch, "images": [[pictures[row]] for row in batch["row"]]}
    )


if __name__ == "__main__":
    main()
