"""Attention of one new token a row, where a model spends its time once the cache is long.

Heads that share a key read it together instead of each a copy of its own; a kernel in Triton reads
only the keys that a row sees, not the whole of a cache of fixed size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from vlmtune.models.attention import switched_attention
from vlmtune.models.kernels import tried

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUPED = "vlmtune_grouped_sdpa"


@contextmanager
def shared_reading(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block, the decoder's attention copies no keys for a single new token, and where
    there is Triton it reads only those that the token sees."""
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation != "sdpa":
        yield  # the user's own choice
        return
    ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED, sdpa_mask)
    attention = partial(grouped_attention, tried(visible_keys, heads_together))
    with switched_attention(config, GROUPED, attention):
        yield


def grouped_attention(
    attend: Callable[..., torch.Tensor],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA with the signature that transformers calls, for one new token a row by `attend`.

    Args:
        query: [rows, heads, tokens, head size]; key, value: the same with fewer heads.
        attention_mask: [rows, 1, tokens, keys] or None.

    Returns:
        [rows, tokens, heads, head size].
    """
    if query.shape[2] > 1 or (attention_mask is not None and attention_mask.shape[1] > 1):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    return attend(query, key, value, attention_mask, scaling).transpose(1, 2), None


def heads_together(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """SDPA of one token a row: the heads that share a key take the place of tokens, so that no
    key is copied for each of them. [rows, heads, 1, head size] of all."""
    rows, heads, _, size = query.shape
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, key.shape[1], heads // key.shape[1], size),
        key,
        value,
        attn_mask=mask,
        scale=scaling,
    )
    return output.reshape(rows, heads, 1, value.shape[-1])


def visible_keys(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """The same in a kernel that passes by what the mask hides."""
    from vlmtune.models.triton_kernels import attend_to_visible

    if mask is None or mask.dtype != torch.bool:
        return heads_together(query, key, value, mask, scaling)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend_to_visible(query[:, :, 0], key, value, mask[:, 0, 0], scaling)[:, :, None]
