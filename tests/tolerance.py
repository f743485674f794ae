"""How far two computations of the same may lie apart: by rounding, and by nothing else.

Rounding to a dtype errs by at most its unit roundoff u = eps / 2, relative to what is rounded. A
result that n roundings went into, one after the other or as the terms of a sum, errs by at most
gamma_n = n u / (1 - n u), relative to the sum of the terms' magnitudes (Higham, Accuracy and
Stability of Numerical Algorithms, 2002, sections 3.1 and 4.2). Errors of both signs cancel for the
most part: by at most margin * sqrt(n) * u, but for a chance below 2 exp(-margin**2 / 2), which is
0.07 % for a margin of 4 and far less in fact, since few errors are as large as u (Higham and Mary,
A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41(5), 2019).
"""

import math
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

MARGIN = 4


def rounding_bound(
    dtype: torch.dtype, roundings: float, magnitude: Any = 1.0, margin: float = MARGIN
) -> Any:
    """margin * sqrt(roundings) * u * magnitude.

    Args:
        roundings: how many went into a result; of two computed results that are compared, those
            of both. Below 1 for a mean over more results than roundings went into each.
        magnitude: of the terms, as a number or as a tensor; 1 for a relative bound.
    """
    return margin * math.sqrt(roundings) * torch.finfo(dtype).eps / 2 * magnitude


def assert_within(found: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> None:
    """Each value lies as near to what is expected as its own bound says."""
    excess = ((found.double() - expected.double()).abs() / bound.double()).max()
    assert float(excess) <= 1, f"{float(excess):.3g} times what rounding explains"


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of two tensors, relative to the norm of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def roundings_in(model: torch.nn.Module, training: bool = False) -> int:
    """Roundings that go into an output of a model: the terms of each layer's sums, as long as a
    row of its weight. Training adds two sums of that kind for each, in the backward. What a layer
    multiplies an error by is about 1, since norms and residuals keep values of one size."""
    terms = sum(weight[0].numel() for weight in model.parameters() if weight.ndim > 1)
    return terms * 3 if training else terms


def attention_bound(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Bound for attention of one token a row.

    A score sums as many terms as a head is large. Its error is, in the exponent, a relative error
    of the key's weight, and of the sum of weights by which it is divided. An output then sums as
    many terms as there are keys.

    Args:
        query: [rows, heads, head size].
        key, value: [rows, key heads, keys, head size].
        visible: [rows, keys], bool.

    Returns:
        [rows, heads, head size], in doubles.
    """
    shared = query.shape[1] // key.shape[1]
    keys, values = (part.repeat_interleave(shared, dim=1).double() for part in (key, value))
    products = torch.einsum("rhs,rhks->rhk", query.double().abs(), keys.abs())
    largest = products.masked_fill(~visible[:, None], 0).amax(-1, keepdim=True)
    # Two more each: for the scale and the exponent's base, for the exponential and the division.
    scores = rounding_bound(query.dtype, query.shape[-1] + 2, scaling * largest)
    relative = 2 * scores + rounding_bound(query.dtype, key.shape[2] + 2)
    magnitude = scaled_dot_product_attention(
        query[:, :, None].double(),
        keys,
        values.abs(),
        attn_mask=visible[:, None, None],
        scale=scaling,
    )
    return relative * magnitude[:, :, 0]
