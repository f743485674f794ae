"""Frozen weights in fp8: the same product, up to the rounding."""

import math

import bitsandbytes as bnb
import pytest
import torch

from tests.tolerance import assert_within, distance, rounding_bound
from vlmtune.models.fp8 import FP8, Fp8Linear, round_rows

STEP = torch.finfo(FP8).eps / 2  # the most that one rounding errs by, relative to the value
# The same as a root mean square: errors are spread evenly over a step, which is no longer than
# that relative to any value.
ROUNDED_ONCE = STEP / math.sqrt(3)


@pytest.fixture
def layer() -> bnb.nn.Linear4bit:
    """A 4-bit layer with a bias, frozen."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(128, 192, dtype=torch.bfloat16)
    layer = bnb.nn.Linear4bit(128, 192, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cpu")
    layer.support_avx512bf16_for_cpu = False
    layer(torch.zeros(1, 128, dtype=torch.bfloat16))
    return layer.requires_grad_(False)


def test_rounding_keeps_each_rows_scale() -> None:
    """A row of tiny numbers next to one of huge ones loses nothing by it."""
    values = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
    values[0] *= 1e-5
    values[1] *= 1e5
    rounded, scale = round_rows(values)
    assert rounded.dtype == FP8
    for row in range(2):
        found = rounded[row].float() * scale[row]
        assert distance(found, values[row]) < ROUNDED_ONCE
        smallest = scale[row] * torch.finfo(FP8).smallest_normal
        nearest = STEP * values[row].abs().clamp(min=float(smallest))
        # Values are scaled in fp32, there and back.
        assert_within(
            found, values[row], nearest + rounding_bound(torch.float32, 3, values[row].abs())
        )


def test_zeros_stay_zeros() -> None:
    """A row without any number has no scale to divide by."""
    rounded, scale = round_rows(torch.zeros(3, 16))
    assert not (rounded.float() * scale).isnan().any() and not rounded.float().any()


def test_product_and_gradient(layer: bnb.nn.Linear4bit) -> None:
    """Output, bias included, and the gradient of the input are those of the 4-bit layer, but for
    the rounding to fp8 of both factors; and those of the rounded factors, but for bf16's."""
    inputs = torch.randn(2, 24, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    results = []
    for module in (layer, Fp8Linear(layer)):
        x = inputs.clone().requires_grad_()
        output = module(x)
        (output.float() * torch.linspace(-1, 1, 192)).sum().backward()
        assert x.grad is not None
        results.append((output.detach(), x.grad))
    for nf4, fp8 in zip(*results, strict=True):
        assert distance(fp8, nf4) < math.sqrt(2) * ROUNDED_ONCE
    module = Fp8Linear(layer)
    weight = module.weight.double() * module.scale
    rounded, scale = round_rows(inputs.reshape(-1, 128))
    x = rounded.double() * scale
    expected = x @ weight.T + layer.bias
    # Sums are rounded to bf16 once, and then again with the bias, which is in bf16 too.
    terms = x.abs() @ weight.abs().T + layer.bias.abs()
    bound = rounding_bound(torch.bfloat16, 3, expected.abs()) + rounding_bound(
        torch.float32, 128, terms
    )
    assert_within(results[1][0].reshape(-1, 192), expected, bound)


def test_weights_take_one_byte(layer: bnb.nn.Linear4bit) -> None:
    """One fp8 copy serves forward and backward, and nothing of it is trained."""
    module = Fp8Linear(layer)
    assert module.weight.element_size() == 1 and module.weight.shape == (192, 128)
    assert not any(weight.requires_grad for weight in module.parameters())
