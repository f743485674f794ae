"""How much memory a training takes, worked out from the model's shapes before it begins.

Counted in bytes a token, as autograd keeps them for a decoder layer: the inputs of norms, query,
key, value and output of the attention, the two halves of the MLP, and the inputs of the adapter's
matrices. docs/benchmarks.md holds the figures against measured peaks.
"""

import copy
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from pydantic import BaseModel, ConfigDict
from transformers import AutoModelForImageTextToText
from transformers.quantizers.quantizers_utils import should_convert_module

from vlmtune.config.training import CPU_PACK_TOKENS
from vlmtune.models.attention import shares_keys

GIB = 1024**3
HALF = 2  # bytes of bf16
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes a weight: 4 bits, and its twice quantised scale
NF4_SINGLE = 0.5 + 4 / 64  # with scales in fp32
TRAINED = 4 + 4 + 8 + HALF  # bytes of a trained weight: itself, gradient, AdamW's two, bf16 copy
USABLE = 0.9  # share of the card that a plan fills
LARGEST_PACK = 16_384  # larger packs train hardly faster
ENOUGH_TOKENS = 4_096  # packs of so many tokens are fast enough to do without checkpointing
USEFUL = {True: 0.45, False: 0.6}  # measured share of the card's matrix products, by checkpointing


@dataclass(frozen=True)
class ModelShape:
    """What decides a training's memory.

    Attributes:
        weights: bytes of the base model on the card.
        tower: of these, bytes outside decoder and head: they leave the card while it trains on
            features from the cache.
        largest_weight: bytes in bf16 of the largest quantised weight, unpacked when it is used.
        adapter: trainable weights.
        layers: decoder layers.
        saved: bytes a token that autograd keeps for one layer.
        boundary: bytes a token of a layer's input, all that checkpointing keeps.
        peak_in_layer: bytes a token that a layer's backward takes besides.
        multiplied: weights that each token is multiplied with in all layers.
    """

    weights: int
    tower: int
    largest_weight: int
    adapter: int
    layers: int
    saved: int
    boundary: int
    peak_in_layer: int
    multiplied: int


class MemoryPlan(BaseModel):
    """Predicted peak of a training, in GiB, and its parts."""

    model_config = ConfigDict(frozen=True)

    tokens: int
    checkpointing: bool
    weights_gib: float
    adapter_gib: float
    activations_gib: float
    working_gib: float
    peak_gib: float


def shape_of(
    config: Any,
    quantization: dict[str, Any],
    lora: dict[str, Any],
    kernels: bool,
    fp8: bool = False,
) -> ModelShape:
    """Shapes of a model with its adapter, without loading a weight.

    Args:
        config: transformers' config of the model.
        quantization, lora: options of BitsAndBytesConfig and LoraConfig.
        kernels: whether norms and MLP activations are fused, by Liger's kernels or compiled.
        fp8: whether the frozen weights are held in fp8 while training.
    """
    options = LoraConfig(**lora)
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # nothing is run
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    skipped = quantization.get("llm_int8_skip_modules") or ["lm_head"]
    quantized = {
        name: module.weight.numel()
        for name, module in linears.items()
        if quantization.get("load_in_4bit") and should_convert_module(name, skipped)
    }
    adapted = {n: m for n, m in linears.items() if check_target_module_exists(options, n)}
    scale = 1.0 if fp8 else NF4 if quantization.get("bnb_4bit_use_double_quant") else NF4_SINGLE
    numel = sum(weight.numel() for weight in model.parameters())
    decoder = model.get_decoder()
    inner = {id(module) for module in decoder.modules()}
    layer = {id(module) for module in decoder.layers[0].modules()}
    text = config.get_text_config()
    kept = (model.get_decoder(), model.get_output_embeddings(), model.get_input_embeddings())
    stays = {id(weight) for module in kept for weight in module.parameters()}
    tower = sum(weight.numel() for weight in model.parameters() if id(weight) not in stays)
    return ModelShape(
        tower=tower * HALF,
        weights=int((numel - sum(quantized.values())) * HALF + sum(quantized.values()) * scale),
        largest_weight=max(quantized.values(), default=0) * (1 if fp8 else HALF),
        adapter=sum(options.r * (m.in_features + m.out_features) for m in adapted.values()),
        layers=len(decoder.layers),
        saved=_saved_in_layer(
            text, [m for m in adapted.values() if id(m) in layer], options, kernels
        ),
        boundary=HALF * text.hidden_size,
        peak_in_layer=2 * HALF * text.intermediate_size,
        multiplied=sum(m.weight.numel() for m in linears.values() if id(m) in inner),
    )


def _saved_in_layer(text: Any, adapted: list[Any], lora: LoraConfig, kernels: bool) -> int:
    """Bytes a token that autograd keeps for one decoder layer."""
    hidden, intermediate = text.hidden_size, text.intermediate_size
    head = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    query, key_value = head * text.num_attention_heads, head * text.num_key_value_heads
    norms = 2 * (HALF if kernels else 4) * hidden  # the plain norm keeps its input in fp32
    if not shares_keys():
        key_value = query
    attention = HALF * (2 * query + 2 * key_value) + 4 * text.num_attention_heads
    mlp = (2 if kernels else 3) * HALF * intermediate
    if lora.lora_dropout:  # each matrix drops out on its own: its input and a mask of bytes
        inputs = sum((HALF + 1) * module.in_features for module in adapted)
    else:  # one input serves all matrices that read it
        inputs = HALF * sum({module.in_features for module in adapted})
    return norms + attention + mlp + inputs + HALF * lora.r * len(adapted)


def plan_memory(
    shape: ModelShape, tokens: int, checkpointing: bool, cached: bool = True
) -> MemoryPlan:
    """Predict the peak of a training whose largest batch has so many tokens, padding included.

    Args:
        cached: picture features come from the cache, and the vision tower is off the card.
    """
    weights = shape.weights - (shape.tower if cached else 0)
    saved = (
        shape.layers * shape.boundary + shape.saved
        if checkpointing
        else (shape.layers * shape.saved)
    )
    activations = tokens * (saved + 2 * shape.boundary)
    working = tokens * shape.peak_in_layer + shape.largest_weight
    adapter = shape.adapter * TRAINED
    peak = weights + adapter + activations + working
    gib = [round(part / GIB, 3) for part in (weights, adapter, activations, working, peak)]
    names = ("weights_gib", "adapter_gib", "activations_gib", "working_gib", "peak_gib")
    return MemoryPlan(
        tokens=tokens, checkpointing=checkpointing, **dict(zip(names, gib, strict=True))
    )


def largest_pack(shape: ModelShape, total: int, checkpointing: bool) -> int:
    """Tokens of the largest pack that the card holds, in steps of 256; 0 if it holds none.

    Args:
        total: bytes of the card's memory.
    """
    # With room for the vision tower: it may be needed when the cache has lost a picture.
    empty = plan_memory(shape, 0, checkpointing, cached=False).peak_gib
    slope = (plan_memory(shape, 10_000, checkpointing, cached=False).peak_gib - empty) / 10_000
    tokens = math.floor((USABLE * total / GIB - empty) / slope / 256) * 256
    return max(0, min(LARGEST_PACK, tokens))


def pick(
    shape: ModelShape | None, total: int | None, max_tokens: Any, checkpointing: Any
) -> tuple[int, Any]:
    """Replace `auto` by what suits the card.

    Args:
        total: bytes of the card's memory; None on a CPU.
        max_tokens, checkpointing: as configured, either may be `auto`.

    Returns:
        Tokens in a pack, and whether to checkpoint.
    """
    if shape is None or total is None:
        tokens = CPU_PACK_TOKENS if max_tokens == "auto" else max_tokens
        return tokens, False if checkpointing == "auto" else checkpointing
    if checkpointing == "auto":
        enough = ENOUGH_TOKENS if max_tokens == "auto" else max_tokens
        checkpointing = largest_pack(shape, total, False) < enough
    if max_tokens == "auto":
        max_tokens = largest_pack(shape, total, bool(checkpointing))
    return max_tokens, checkpointing


def tokens_per_second(shape: ModelShape, checkpointing: bool, ceiling: float) -> float:
    """Predicted speed of packed training.

    A token takes 4 FLOPs a weight: 2 forward, 2 for the gradient of its activations. What
    recomputing costs is in the measured share, see docs/benchmarks.md.

    Args:
        ceiling: TFLOP/s of a large bf16 matrix product on this card.
    """
    return USEFUL[checkpointing] * ceiling * 1e12 / (4 * shape.multiplied)


def matrix_ceiling(size: int = 8_192, times: int = 10) -> float:
    """TFLOP/s of a bf16 matrix product on this card, the median of some."""
    one, other = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    seconds = []
    for _ in range(times + 3):
        torch.cuda.synchronize()
        began = time.monotonic()
        one @ other
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
    return 2 * size**3 / statistics.median(seconds[3:]) / 1e12


def card_memory(device: str) -> int | None:
    """Bytes of the card's memory; None on a CPU."""
    return torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None
