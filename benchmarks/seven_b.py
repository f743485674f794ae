"""Qwen2-VL-7B's exact shapes with random weights, and a catalog of picture files to use them on.

Speed and memory do not depend on the weights' values, so the benchmarks need no download.
"""

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIDES = (224, 644)  # pixels of the pictures
GIB = 1024**3

LORA = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "bias": "none",
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}
QUANTIZATION = {
    "load_in_4bit": True,
    "bnb_4bit_use_double_quant": True,
    "llm_int8_skip_modules": ["model.visual", "lm_head"],
}


def make_catalog(folder: Path, rows: int, sides: Sequence[int] = SIDES) -> None:
    """Smooth random pictures and texts of the demo's words, as a catalog folder."""
    import numpy
    from PIL import Image

    random_numbers, generator = random.Random(0), numpy.random.default_rng(0)
    with (ROOT / "demo" / "catalog" / "metadata.csv").open() as file:
        words = " ".join(row["description"] for row in csv.DictReader(file)).split()
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "Product Name", "Category", "description", "group"])
        for row in range(rows):
            size = (random_numbers.randint(*sides), random_numbers.randint(*sides))
            noise = generator.integers(0, 256, (12, 12, 3), dtype="uint8")
            picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
            picture.save(folder / f"{row}.jpg", quality=90)
            count = random_numbers.randint(40, 200)
            text = " ".join(random_numbers.choices(words, k=count))
            table.writerow([f"{row}.jpg", f"Product {row}", "Things", text, f"group {row}"])


def configuration(folder: Path, tiny: bool) -> Any:
    """The demo's configuration with this catalog and the published recipe's adapter."""
    from vlmtune.config.loading import load_config

    # The demo's pictures are all of one size; these keep theirs, up to 644 x 644 pixels.
    pixels = [] if tiny else ["model.max_pixels=414736", "model.min_pixels=3136"]
    return load_config(
        ROOT / "configs" / "demo.yaml",
        [f"data.source={folder}", "data.max_quarantine=0", f"model.id={ROOT}/demo/model", *pixels],
    )


def build_model(processor: Any, tiny: bool) -> Any:
    """Qwen2-VL-7B's shapes with random weights, quantised on the card."""
    model = build_unquantised(processor, tiny)
    quantize_in_place(model.get_decoder())
    model.is_loaded_in_4bit = True
    return model


def build_unquantised(processor: Any, tiny: bool) -> Any:
    """The same in bf16, with the same random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    tokenizer = processor.tokenizer
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "image": "<|image_pad|>",
            "video": "<|video_pad|>",
            "vision_start": "<|vision_start|>",
            "vision_end": "<|vision_end|>",
        }.items()
    }
    config = AutoConfig.from_pretrained(ROOT / "demo" / "model") if tiny else shapes(**ids)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False)


def shapes(**tokens: int) -> Any:
    """Qwen2-VL-7B's config, with the ids of special tokens."""
    from transformers import Qwen2VLConfig

    return Qwen2VLConfig(
        text_config={
            "vocab_size": 152_064,
            "hidden_size": 3_584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [16, 24, 24],
            },
        },
        vision_config={
            "depth": 32,
            "embed_dim": 1_280,
            "hidden_size": 3_584,
            "num_heads": 16,
            "mlp_ratio": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        tie_word_embeddings=False,
        **tokens,
    )


def quantize_in_place(module: Any) -> None:
    """Replace each linear layer by its NF4 version, one at a time."""
    import bitsandbytes as bnb
    import torch

    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.Linear):
            new = bnb.nn.Linear4bit(
                child.in_features,
                child.out_features,
                bias=child.bias is not None,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                compress_statistics=True,
                device="meta",
            )
            weight = bnb.nn.Params4bit(
                child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            new.weight = weight.to(child.weight.device)
            if new.weight.quant_state is None:
                new.weight = weight._quantize(child.weight.device)
            new.bias = child.bias
            new.support_avx512bf16_for_cpu = False
            setattr(module, name, new)
        else:
            quantize_in_place(child)


def decoder_weights(model: Any) -> int:
    """Weights that each token is multiplied with, the head left out."""
    from bitsandbytes.nn import Linear4bit

    layers = (each for each in model.get_decoder().modules() if isinstance(each, Linear4bit))
    return sum(layer.in_features * layer.out_features for layer in layers)


def memory(peak: bool = True) -> float:
    """GiB on the card."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    used = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    return round(used / GIB, 2)
