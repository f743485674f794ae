"""Liger's fused kernels for norms and MLP activations, each held against the model's own first.

Liger's own patches go by model family and break with transformers' releases; here a kernel takes
the place of any module that computes the same, whatever it is called.
"""

import importlib.util
import logging
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Forward = Callable[[Any, torch.Tensor], torch.Tensor]
TRIED_TOKENS = 64
TOLERANCE = 0.02  # relative, in bf16


def has_liger() -> bool:
    """Whether Liger's kernels are installed."""
    return importlib.util.find_spec("liger_kernel") is not None


def use_fused_kernels(model: "PreTrainedModel") -> dict[str, int]:
    """Replace the forward of norms and gated MLPs of the decoder by fused kernels.

    Norms keep their input and output in the model's dtype and compute in fp32 inside, so no fp32
    copy of the hidden states is kept for the backward.

    Returns:
        How many modules of each kind were replaced.
    """
    replaced: dict[str, int] = {}
    agrees: dict[type, bool] = {}
    for module in model.get_decoder().modules():
        kind = _kind(module)
        if kind is None:
            continue
        if type(module) not in agrees:
            agrees[type(module)] = _same(module, kind, model)
        if agrees[type(module)]:
            module.forward = types.MethodType(KERNELS[kind], module)
            replaced[kind] = replaced.get(kind, 0) + 1
    return replaced


def _kind(module: torch.nn.Module) -> str | None:
    """What a module looks like from outside; whether it is that is tried out."""
    if "RMSNorm" in type(module).__name__ and getattr(module, "weight", None) is not None:
        return "norms" if _epsilon(module) is not None else None
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return "MLPs" if all(hasattr(module, part) for part in parts) else None


def _epsilon(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(
        hidden_states, self.weight, _epsilon(self), 0.0, "llama", False
    )


def _mlp(self: Any, x: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(x), self.up_proj(x)))


KERNELS: dict[str, Forward] = {"norms": _norm, "MLPs": _mlp}


def _same(module: Any, kind: str, model: "PreTrainedModel") -> bool:
    """Whether the kernel gives what the module gives, on random input."""
    source = module.weight if kind == "norms" else module.gate_proj
    width = source.shape[-1] if kind == "norms" else source.in_features
    generator = torch.Generator(model.device).manual_seed(0)
    states = torch.randn(
        1, TRIED_TOKENS, width, device=model.device, dtype=model.dtype, generator=generator
    )
    try:
        with torch.no_grad():
            own, kernel = module(states), KERNELS[kind](module, states)
    except Exception as error:
        logger.info("No fused kernel for %s: %s", type(module).__name__, error)
        return False
    distance = float((own.float() - kernel.float()).norm() / own.float().norm())
    if distance > TOLERANCE:
        logger.info("No fused kernel for %s: it differs", type(module).__name__)
    return distance <= TOLERANCE
