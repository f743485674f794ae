"""What test_triton_kernels.py runs under Triton's interpreter."""

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.activations import QuickGELUActivation

from tests.tolerance import (
    assert_within,
    attention_bound,
    distance,
    rounding_bound,
    roundings_in,
)
from tests.unit.families import FAMILIES, prompts
from vlmtune.models import tower_kernels, triton_kernels
from vlmtune.models.decode_attention import shared_reading
from vlmtune.models.tower_kernels import fused_tower

# rows, heads, key heads, keys, head size
SHAPES = [(3, 8, 2, 100, 64), (5, 28, 4, 190, 128), (2, 4, 4, 70, 80), (2, 40, 2, 65, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_to_what_is_visible(shape: tuple[int, ...]) -> None:
    """Rows that start and end at different places, with a hole, in views of larger tensors;
    what is hidden is never read into the result."""
    rows, heads, key_heads, keys, size = shape
    torch.manual_seed(0)
    query = torch.randn(rows, heads, size)
    key, value = torch.randn(2, rows, key_heads, keys + 5, size)[..., 3 : keys + 3, :]
    visible = torch.zeros(rows, keys, dtype=torch.bool)
    for row in range(rows):
        visible[row, 7 * row + 30 : keys - 3 * row - 1] = True
    visible[0, 40:44] = False
    hidden = ~visible[:, None, :, None].expand_as(key)
    expected = scaled_dot_product_attention(
        query[:, :, None].double(),
        key.double(),
        value.double(),
        attn_mask=visible[:, None, None],
        scale=0.3,
        enable_gqa=True,
    )[:, :, 0]
    bound = attention_bound(query, key, value, visible, 0.3)
    key[hidden], value[hidden] = 1e4, 1e4
    found = triton_kernels.attend_to_visible(query, key, value, visible, 0.3)
    assert_within(found, expected, bound)


def test_quick_gelu() -> None:
    """Of more values than one program computes, in any layout."""
    torch.manual_seed(0)
    x = torch.randn(70, 3, 50).transpose(0, 1)
    expected = QuickGELUActivation()(x.double())
    # An error of the sigmoid's argument is a relative error of the sigmoid. One rounding each for
    # the constant, three products and quotients, and a sum; an exponential errs by twice as much,
    # which counts as four.
    bound = rounding_bound(x.dtype, 9, expected.abs() * (1 + 1.702 * x.abs()))
    assert_within(triton_kernels.quick_gelu(x), expected, bound)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """Count the calls of a function."""
    calls, own = [0], getattr(module, name)

    def watched(*inputs: Any) -> Any:
        calls[0] += 1
        return own(*inputs)

    monkeypatch.setattr(module, name, watched)
    return calls


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_model_computes_the_same_with_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are used, not only tried, and the model is left as it was."""
    attention = counted(monkeypatch, triton_kernels, "attend_to_visible")
    rope = counted(monkeypatch, tower_kernels, "fused_rope")
    gelu = counted(monkeypatch, triton_kernels, "quick_gelu")
    family = FAMILIES[name]
    model: Any = family.model()
    inputs = prompts(family, [(2, 3), (4, 4)])
    options = {"cache_implementation": "static", "disable_compile": True, "max_new_tokens": 6}
    pictures = inputs["pixel_values"], inputs["image_grid_thw"]
    roundings = roundings_in(model.model.visual)

    def features() -> list[torch.Tensor]:
        return list(model.get_image_features(*pictures).pooler_output)

    with torch.no_grad():
        own, seen = model.generate(**inputs, **options, do_sample=False), features()
        assert attention + rope + gelu == [0, 0, 0]
        with shared_reading(model), fused_tower(model):
            found = model.generate(**inputs, **options, do_sample=False)
            for one, other in zip(seen, features(), strict=True):
                assert distance(other, one) <= rounding_bound(one.dtype, 2 * roundings)
        assert torch.equal(own, found)
        assert attention[0] == 10 and rope[0] == 4 and gelu[0] in (0, 4)
        features()
        assert rope[0] == 4
