"""Liger's fused kernels for norms and MLP activations, each held against the model's own first.

Liger's own patches go by model family and break with transformers' releases; here a kernel takes
the place of any module that computes the same, whatever it is called.
"""

import importlib.util
import logging
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Forward = Callable[[Any, torch.Tensor], torch.Tensor]
TRIED_TOKENS = 64
# Relative, in bf16: five times its unit roundoff of 2 ** -8, since a kernel rounds where the model
# does not, and the other way round.
TOLERANCE = 0.02
ROPE = "apply_rotary_pos_emb"  # what transformers calls it in every model


def has_liger() -> bool:
    """Whether Liger's kernels are installed."""
    return importlib.util.find_spec("liger_kernel") is not None


def layers_compiled(training: dict[str, Any], fp8: bool) -> bool:
    """Whether a GPU runs the decoder's layers compiled: as `torch_compile` says, else for fp8,
    which is slower than bf16 without it."""
    return bool(training.get("torch_compile", fp8))


def layers_fused(training: dict[str, Any]) -> bool:
    """Whether a GPU runs Liger's kernels: if they are there, unless the config says no."""
    return has_liger() and bool(training.get("use_liger_kernel", True))


def use_fused_kernels(model: "PreTrainedModel") -> dict[str, int]:
    """Replace norms, gated MLPs and rotary embeddings of the decoder by fused kernels.

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
    if _fuse_rope(model):
        replaced["rope"] = 1
    return replaced


@contextmanager
def fused_kernels(model: "PreTrainedModel") -> Iterator[None]:
    """`use_fused_kernels` within the block, if Liger's are installed."""
    if not has_liger():
        yield
        return
    home = sys.modules[type(model.get_decoder()).__module__]
    own_rope = getattr(home, ROPE, None)
    use_fused_kernels(model)
    try:
        yield
    finally:
        for module in model.get_decoder().modules():
            if getattr(module.__dict__.get("forward"), "__func__", None) in KERNELS.values():
                del module.forward
        if own_rope is not None:
            setattr(home, ROPE, own_rope)


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


def _fuse_rope(model: "PreTrainedModel") -> bool:
    """Replace the function that rotates queries and keys, which all attention layers of a model
    share, if the kernel rotates as it does."""
    home = sys.modules[type(model.get_decoder()).__module__]
    own = getattr(home, ROPE, None)
    text = model.config.get_text_config()
    if own is None or getattr(own, "fused", False):
        return own is not None
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    generator = torch.Generator(model.device).manual_seed(0)
    make = partial(torch.randn, device=model.device, dtype=model.dtype, generator=generator)
    states = [
        make(1, TRIED_TOKENS, heads, size).transpose(1, 2)
        for heads in (text.num_attention_heads, text.num_key_value_heads)
    ]
    half = make(1, TRIED_TOKENS, size // 2).float()
    angles = [
        torch.cat([axis(half)] * 2, dim=-1).to(model.dtype) for axis in (torch.cos, torch.sin)
    ]
    if not _agree("A kernel for rotary embeddings", fused_rope, own, *states, *angles):
        return False
    setattr(home, ROPE, fused_rope)
    return True


def tried(kernel: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """A function that computes with a kernel, if the kernel gives what `own` gives for the first
    input that it meets; else with `own`."""
    agrees: bool | None = None

    @wraps(own)
    def chosen(*inputs: Any) -> Any:
        nonlocal agrees
        if agrees is None:
            agrees = _agree(getattr(kernel, "__name__", "A kernel"), kernel, own, *inputs)
            return own(*inputs)
        return kernel(*inputs) if agrees else own(*inputs)

    return chosen


def _agree(name: str, kernel: Callable[..., Any], own: Callable[..., Any], *inputs: Any) -> bool:
    """Whether a kernel gives what it would stand in for gives; the log says why not. It may write
    into its inputs."""

    def results(compute: Callable[..., Any]) -> Any:
        copies = [each.clone() if isinstance(each, torch.Tensor) else each for each in inputs]
        found = compute(*copies)
        return [found] if isinstance(found, torch.Tensor) else found

    try:
        distance = max(map(_distance, results(own), results(kernel)))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        logger.info("%s is not used: %s", name, error)
        return False
    if not distance <= TOLERANCE:  # no number at all is no agreement either
        logger.info("%s is not used: it differs by %.3f", name, distance)
        return False
    return True


def fused_rope(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    from liger_kernel.ops.rope import LigerRopeFunction

    return LigerRopeFunction.apply(q, k, cos, sin, None, unsqueeze_dim)


fused_rope.fused = True  # type: ignore[attr-defined]


KERNELS: dict[str, Forward] = {"norms": _norm, "MLPs": _mlp}


def _same(module: Any, kind: str, model: "PreTrainedModel") -> bool:
    """Whether the kernel gives what the module gives, on random input."""
    source = module.weight if kind == "norms" else module.gate_proj
    width = source.shape[-1] if kind == "norms" else source.in_features
    generator = torch.Generator(model.device).manual_seed(0)
    states = torch.randn(
        1, TRIED_TOKENS, width, device=model.device, dtype=model.dtype, generator=generator
    )
    with torch.no_grad():
        return _agree(
            f"A kernel for {type(module).__name__}", partial(KERNELS[kind], module), module, states
        )


def _distance(expected: torch.Tensor, found: torch.Tensor) -> float:
    return float((expected.float() - found.float()).norm() / expected.float().norm())
