"""Attention over packed samples: no token sees another sample, and no padding is computed.

Samples lie one after the other in one row of tokens; `cu_seq_lens` says where each begins, as in
flash-attn. The name under which it is registered holds "flash", so transformers builds no mask
and hands the bounds through, to the vision tower as well, where each picture is a sample.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

VARLEN = "vlmtune_flash_attention_varlen"
BOUND_VARLEN = "vlmtune_flash_attention_bound_varlen"
FLASH_ATTN = "flash_attention_2"
HALF = (torch.bfloat16, torch.float16)


def use_packed_attention(model: "PreTrainedModel") -> str:
    """Switch language model and vision tower to attention that keeps samples apart.

    Returns:
        What was chosen, in words for the log.
    """
    if model.device.type == "cuda" and is_flash_attn_2_available():
        model.set_attn_implementation(FLASH_ATTN)
        return "flash-attn"
    ALL_ATTENTION_FUNCTIONS.register(VARLEN, varlen_attention)
    # `set_attn_implementation` would look for a package behind any name with "flash" in it.
    model.config._attn_implementation = VARLEN
    if model.device.type == "cuda" and _torch_varlen():
        return "torch's varlen flash attention"
    return "SDPA, sample by sample"


@contextmanager
def packed_attention(
    config: Any, bounds: torch.Tensor | None = None, longest: int | None = None
) -> Iterator[None]:
    """Within the block, the part of a model with this config keeps packed samples apart.

    Args:
        bounds, longest: of the samples, `cu_seq_lens_q` and `max_length_q` of `varlen_attention`,
            if that part of the model is not told them: what a model's forward is told, some
            models pass on to their vision tower, whose pictures have other bounds.
    """
    name, attention = VARLEN, varlen_attention
    if bounds is not None:
        name = BOUND_VARLEN
        attention = partial(varlen_attention, cu_seq_lens_q=bounds, max_length_q=longest)
    with switched_attention(config, name, attention):
        yield


@contextmanager
def switched_attention(config: Any, name: str, attention: Callable[..., Any]) -> Iterator[None]:
    """Within the block, the part of a model with this config attends by a function of ours."""
    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.compiler.disable  # compiled layers call it as it is
def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with the signature that transformers calls.

    Args:
        query, key, value: [1, heads, tokens, head size]; fewer heads in key and value are shared.
        cu_seq_lens_q: [samples + 1], int32; without it, each row of the batch is one sample.

    Returns:
        [1, tokens, heads, head size].

    Raises:
        NotImplementedError: soft caps or attention sinks, which the kernels here do not have.
    """
    if softcap or s_aux is not None:
        raise NotImplementedError("soft caps and attention sinks cannot be packed here")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if cu_seq_lens_q is None or attention_mask is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=causal
        )
    tokens = [part.squeeze(0).transpose(0, 1) for part in (query, key, value)]
    flash = _torch_varlen() if query.is_cuda and query.dtype in HALF else None
    attend: Any = _flash if flash else _sample_by_sample
    output = attend(*tokens, cu_seq_lens_q, max_length_q, causal, scaling, sliding_window)
    return output.unsqueeze(0), None


@cache
def _torch_varlen() -> Any:
    """torch's varlen attention with the names of its parameters, which differ between versions."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def shares_keys() -> bool:
    """Whether several query heads read one key without copies of it."""
    if is_flash_attn_2_available():
        return True
    varlen = _torch_varlen()
    return varlen is None or "enable_gqa" in varlen[1] or _kernel_shares_keys()


@cache
def _kernel_shares_keys() -> bool:
    """Whether a torch without `enable_gqa` takes fewer keys than queries all the same: tried,
    with gradients, against copied keys."""
    if not torch.cuda.is_available():
        return False
    varlen, _ = _torch_varlen()
    bounds = torch.tensor([0, 24, 64], device="cuda", dtype=torch.int32)
    made = torch.Generator("cuda").manual_seed(0)
    shapes = [(64, 4, 64), (64, 2, 64), (64, 2, 64)]
    parts = [torch.randn(shape, device="cuda", generator=made).bfloat16() for shape in shapes]

    @torch.enable_grad()  # whoever asks first may be one who only writes
    def gradients(copies: int) -> list[torch.Tensor]:
        leaves = [part.clone().requires_grad_() for part in parts]
        query, key, value = leaves
        keys = [each.repeat_interleave(copies, dim=1) for each in (key, value)]
        varlen(query, *keys, bounds, bounds, 40, 40).float().pow(2).sum().backward()
        return [leaf.grad.float() for leaf in leaves if leaf.grad is not None]

    try:
        pairs = zip(gradients(1), gradients(2), strict=True)
        return all(float((one - two).norm() / two.norm()) < 0.05 for one, two in pairs)
    except Exception:
        return False


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int | None,
    causal: bool,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """torch.nn.attention.varlen on [tokens, heads, head size]."""
    varlen, parameters = _torch_varlen()
    options: dict[str, Any] = {}
    if "window_size" in parameters:
        options["window_size"] = (window - 1 if window else -1, 0) if causal else (-1, -1)
    elif window:
        raise NotImplementedError("this torch has no varlen attention with a sliding window")
    else:
        options["is_causal"] = causal
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in parameters:
            options["enable_gqa"] = True
        elif not _kernel_shares_keys():
            repeats = query.shape[1] // key.shape[1]
            key, value = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
    if scaling is not None and "scale" in parameters:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    longest = longest or int(bounds.diff().max())
    return varlen(
        *(part.contiguous() for part in (query, key, value)),
        bounds,
        bounds,
        longest,
        longest,
        **options,
    )


def _sample_by_sample(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int | None,
    causal: bool,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """The same by SDPA on any device and dtype: samples are rows of a batch, where a causal mask
    hides the filled up ends; else they are taken one after the other."""
    options = {"scale": scaling, "enable_gqa": key.shape[1] != query.shape[1]}
    sizes = bounds.diff().tolist()
    if causal and not (window and window < max(sizes)):
        place, real = _as_batch(tuple(sizes), query.device)
        batch = [part[place].transpose(1, 2) for part in (query, key, value)]
        output = scaled_dot_product_attention(*batch, is_causal=True, **options)
        return output.transpose(1, 2)[real]
    samples = zip(
        *(part.transpose(0, 1).split(sizes, dim=1) for part in (query, key, value)), strict=True
    )
    outputs = []
    for sample in samples:
        mask = _window_mask(sample[0].shape[1], window, query.device) if causal else None
        rows = (part.unsqueeze(0) for part in sample)
        outputs.append(scaled_dot_product_attention(*rows, attn_mask=mask, **options).squeeze(0))
    return torch.cat(outputs, dim=1).transpose(0, 1)


@lru_cache(maxsize=4)
def _as_batch(sizes: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each place of a batch of samples lies in the pack, and which places are real.

    Returns:
        Two tensors of shape [samples, longest].
    """
    lengths = torch.tensor(sizes, device=device)
    steps = torch.arange(max(sizes), device=device)[None]
    real = steps < lengths[:, None]
    starts = lengths.cumsum(0) - lengths
    return torch.where(real, starts[:, None] + steps, starts[:, None]), real


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[length, length]: which of the last `window` tokens each token may look at."""
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    return (distance >= 0) & (distance < (window or length))
