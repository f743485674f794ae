"""Merging layer by layer: each merged weight must be what arithmetic makes of base and adapter,
and the weights that are read back must be those that were written, bit for bit.
"""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlmtune.models.adapter import ADAPTER_WEIGHTS
from vlmtune.models.merge_record import MergeCheck
from vlmtune.revision import hash_file

if TYPE_CHECKING:
    from peft import PeftModel

ROWS_AT_ONCE = 1024  # of a weight: what is held beside it stays small
# Stochastic rounding of a value that lies a share f of a step above the step below errs with a
# variance of f (1 - f) steps squared: 1/6 on average, 1/4 at most. So does a whole step for one
# weight in six.
ONE_IN = 6
NOISE_SEED = 0
LOW_BITS = 16  # of a float32, which a bfloat16 lacks


@dataclass(frozen=True)
class LowRankChange:
    """What an adapter adds to one layer's weight: scale * b @ a.

    Attributes:
        a: shape [rank, inputs].
        b: shape [outputs, rank].
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float


def read_changes(folder: Path) -> dict[str, LowRankChange]:
    """Layer's name -> its change, from an adapter's files alone: PEFT's own layers are on trial."""
    from peft import LoraConfig
    from peft.utils.other import get_pattern_key
    from safetensors.torch import load_file

    config = LoraConfig.from_pretrained(folder)
    weights = load_file(folder / ADAPTER_WEIGHTS)
    changes = {}
    for key in weights:
        name, suffix, _ = key.partition(".lora_A.weight")
        if suffix:
            a, b = weights[key], weights[f"{name}.lora_B.weight"]
            pattern = get_pattern_key(
                list(config.alpha_pattern), name.removeprefix("base_model.model.")
            )
            alpha = config.alpha_pattern.get(pattern, config.lora_alpha)
            scale = alpha / len(a) ** (0.5 if config.use_rslora else 1)
            changes[name] = LowRankChange(a.float(), b.float(), scale)
    return changes


def merge_layers(model: "PeftModel", adapter_folder: Path) -> "tuple[Any, MergeCheck]":
    """Merge the adapter in place, one layer at a time, and compare each with base + adapter.

    Sums are rounded stochastically; the same adapter gives the same bits. Layers of another kind
    than a linear one with plain LoRA are merged by PEFT, rounded to nearest, and not compared.

    Returns:
        The merged model without PEFT's layers, and what was found.
    """
    from peft.tuners.lora import Linear, LoraLayer

    changes = read_changes(adapter_folder)
    layers = dict(model.named_modules())
    (active,) = model.active_adapters
    seed = int(hash_file(adapter_folder / ADAPTER_WEIGHTS)[:15], 16)
    generator = torch.Generator(model.device).manual_seed(seed)
    right: list[str] = []
    wrong: list[str] = []
    others: list[str] = []
    for name, change in changes.items():
        layer: Any = layers.get(name)
        if type(layer) is Linear and not (layer.lora_variant or layer.lora_bias[active]):
            weight = layer.get_base_layer().weight
            before = weight.detach().clone()
            add(weight, layer.get_delta_weight(active), generator)
            layer.merged_adapters.append(active)  # not to be merged once more below
            (right if is_merged(before, weight, change) else wrong).append(name)
        else:
            (others if isinstance(layer, LoraLayer) else wrong).append(name)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # merged already
        merged = model.merge_and_unload(safe_merge=True)
    return merged, _check(right, wrong, others)


@torch.inference_mode()
def add(weight: torch.Tensor, delta: torch.Tensor, generator: torch.Generator) -> None:
    """Add what an adapter adds to a layer's weight, in place.

    Args:
        weight, delta: shape [outputs, inputs].
        generator: on the weight's device.
    """
    for part, change in zip(weight.split(ROWS_AT_ONCE), delta.split(ROWS_AT_ONCE), strict=True):
        part.copy_(round_stochastically(part.float() + change.float(), part.dtype, generator))


def round_stochastically(
    values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Round float32 to bfloat16, up or down with the chances that keep the mean.

    The base's weights lie on the steps of bfloat16. Rounding to nearest would take a change of
    less than half a step for none, each time, and so lose a part of the adapter; stochastic
    rounding loses nothing in the mean (Connolly, Higham and Mary, Stochastic Rounding and Its
    Probabilistic Backward Error Analysis, SIAM J. Sci. Comput. 43(1), 2021). Other dtypes are
    rounded to nearest.
    """
    if dtype != torch.bfloat16:
        return values.to(dtype)
    steps = torch.randint(
        2**LOW_BITS, values.shape, generator=generator, device=values.device, dtype=torch.int32
    )
    # A random share of a step is added to the magnitude, and what is below a step is cut off.
    bits = (values.view(torch.int32) + steps) & -(2**LOW_BITS)
    return bits.view(torch.float32).to(dtype)


@torch.inference_mode()
def is_merged(before: torch.Tensor, after: torch.Tensor, change: LowRankChange) -> bool:
    """Whether each weight is base + change, to within a step of its type.

    A step at a value is at most eps times its magnitude. The sum of the change's terms counts half
    of eps besides: that leaves room for how the product was summed, in single precision or TF32.

    Args:
        before, after: the layer's weight, shape [outputs, inputs].
    """
    eps = torch.finfo(after.dtype).eps
    a, b = change.a.to(after.device), change.b.to(after.device)
    parts = (tensor.split(ROWS_AT_ONCE) for tensor in (before, after, b * change.scale))
    for old, new, rows in zip(*parts, strict=True):
        wanted = old.float() + rows @ a
        tolerance = eps * (wanted.abs() + (rows.abs() @ a.abs()) / 2)
        if not ((new.float() - wanted).abs() <= tolerance).all():
            return False
    return True


def _check(right: list[str], wrong: list[str], others: list[str]) -> MergeCheck:
    found = f"{len(right)} of {len(right) + len(wrong)} layers"
    if wrong:
        found += f", not in {wrong[0]}"
    if others:
        found += f"; {len(others)} without plain LoRA are judged by their outputs alone"
    return MergeCheck(
        name="weights", wanted="base + adapter but for rounding", found=found, met=not wrong
    )


@torch.inference_mode()
def add_rounding_noise(model: "PeftModel") -> None:
    """Put as much noise into the adapted layers' weights as a merge's rounding leaves in them.

    Flips the last bit of some, which is a step up or down; a second call takes it back.
    """
    from peft.tuners.lora import LoraLayer

    generator = torch.Generator(model.device).manual_seed(NOISE_SEED)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for weight in layer.get_base_layer().parameters():
                chosen = torch.randint(
                    ONE_IN,
                    weight.shape,
                    generator=generator,
                    device=weight.device,
                    dtype=torch.uint8,
                )
                bits = weight.view(getattr(torch, f"int{8 * weight.element_size()}"))
                bits ^= chosen == 0


def digest_weights(model: Any) -> dict[str, str]:
    """Name -> SHA-256 of the tensor's bytes, for all weights of a model."""
    return {
        name: hashlib.sha256(
            tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        ).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def check_stored_weights(merged: dict[str, str], read: dict[str, str]) -> MergeCheck:
    """The model that was read back must have the weights of the one that was merged.

    Args:
        merged, read: what `digest_weights` made of each.
    """
    differing = sorted({name for name, _ in merged.items() ^ read.items()})
    same = len(merged.items() & read.items())
    return MergeCheck(
        name="stored weights",
        wanted="bit for bit those that were merged",
        found=f"{same} of {len(merged)} tensors" + (f", not {differing[0]}" if differing else ""),
        met=not differing,
    )
