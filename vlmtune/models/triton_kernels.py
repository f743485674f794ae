"""Kernels in Triton for what a model writes with; imported only where Triton is.

Each is held against what it stands in for before it is used (`kernels.tried`).
"""

from typing import Any

import torch
import triton
import triton.language as tl

KEYS_AT_A_TIME, VALUES_AT_A_TIME = 64, 2_048
FEWEST_HEADS = 16  # what a matrix product in Triton takes at least
LOG2_E = 1.4426950408889634


def attend_to_visible(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Softmax attention of one token a row over a cache of fixed size.

    SDPA reads all of the cache, also what is masked: rows of a batch are of different lengths, and
    the cache's end is empty until it is written, so half of what it reads counts for nothing. Here
    each row is read from its first visible key to its last, once for the heads that share it, with
    an online softmax as in FlashAttention (arXiv:2205.14135).

    Args:
        query: [rows, heads, head size].
        key, value: [rows, key heads, keys, head size], the last dimension contiguous; heads that
            share a key lie one after the other.
        visible: [rows, keys], bool; each row sees one key at least.

    Returns:
        [rows, heads, head size].
    """
    rows, heads, size = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    shared = heads // key_heads
    query = query.contiguous()
    output = torch.empty_like(query)
    strides = [tensor.stride(axis) for tensor in (key, value) for axis in (0, 1, 2)]
    launch: Any = _attend[(rows, key_heads)]
    launch(
        query,
        key,
        value,
        visible.view(torch.uint8),
        output,
        scaling * LOG2_E,
        keys,
        visible.stride(0),
        *strides,
        HEADS=shared,
        SIZE=size,
        HEAD_BLOCK=max(FEWEST_HEADS, triton.next_power_of_2(shared)),
        SIZE_BLOCK=triton.next_power_of_2(size),
        KEY_BLOCK=KEYS_AT_A_TIME,
        ALL_KEYS=triton.next_power_of_2(keys),
    )
    return output


@triton.jit
def _attend(
    query,
    key,
    value,
    visible,
    output,
    scale,
    keys,
    visible_row,
    key_row,
    key_head,
    key_place,
    value_row,
    value_head,
    value_place,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    SIZE_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    ALL_KEYS: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    places = tl.arange(0, ALL_KEYS)
    seen = tl.load(visible + row * visible_row + places, mask=places < keys, other=0)
    first = tl.min(tl.where(seen != 0, places, ALL_KEYS))
    end = tl.max(tl.where(seen != 0, places + 1, 0))

    heads, sizes = tl.arange(0, HEAD_BLOCK), tl.arange(0, SIZE_BLOCK)
    at = ((row * tl.num_programs(1) + head) * HEADS + heads[:, None]) * SIZE + sizes[None, :]
    real = (heads[:, None] < HEADS) & (sizes[None, :] < SIZE)
    q = tl.load(query + at, mask=real, other=0.0)

    largest = tl.full([HEAD_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([HEAD_BLOCK], tl.float32)
    mixed = tl.zeros([HEAD_BLOCK, SIZE_BLOCK], tl.float32)
    key += row * key_row + head * key_head
    value += row * value_row + head * value_head
    for start in range(first // KEY_BLOCK * KEY_BLOCK, end, KEY_BLOCK):
        place = start + tl.arange(0, KEY_BLOCK)
        inside = (place[:, None] < keys) & (sizes[None, :] < SIZE)
        k = tl.load(key + place[:, None] * key_place + sizes[None, :], mask=inside, other=0.0)
        v = tl.load(value + place[:, None] * value_place + sizes[None, :], mask=inside, other=0.0)
        counts = tl.load(visible + row * visible_row + place, mask=place < keys, other=0) != 0
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(counts[None, :], scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        kept = tl.exp2(largest - higher)
        total = total * kept + tl.sum(weights, 1)
        mixed = mixed * kept[:, None]
        mixed += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        largest = higher
    tl.store(output + at, (mixed / total[:, None]).to(q.dtype), mask=real)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x) in one pass, computed in fp32."""
    x = x.contiguous()
    output = torch.empty_like(x)
    launch: Any = _quick_gelu[(triton.cdiv(x.numel(), VALUES_AT_A_TIME),)]
    launch(x, output, x.numel(), BLOCK=VALUES_AT_A_TIME)
    return output


@triton.jit
def _quick_gelu(x, output, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count, other=0.0)
    wide = value.to(tl.float32)
    tl.store(output + at, (wide * tl.sigmoid(1.702 * wide)).to(value.dtype), mask=at < count)
