"""vLLM as far as it can be tried without it: what it is told, and that its absence is."""

import importlib.util
from typing import Any

import pytest

from tests.unit.describing.conftest import Shop
from vlmtune.describing.vllm_engine import sampling_options
from vlmtune.errors import UserError


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ({"max_new_tokens": 64, "do_sample": False}, {"max_tokens": 64, "temperature": 0.0}),
        ({"max_new_tokens": 9, "temperature": 0.7}, {"max_tokens": 9, "temperature": 0.0}),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": None},
            {"temperature": 0.7, "top_p": 0.9},
        ),
        (
            {"min_new_tokens": 5, "repetition_penalty": 1.1},
            {"min_tokens": 5, "repetition_penalty": 1.1, "temperature": 0.0},
        ),
    ],
)
def test_options_under_its_own_names(options: dict[str, Any], sampling: dict[str, Any]) -> None:
    """Greedy unless sampling is asked for, as in transformers."""
    assert sampling_options(options) == sampling


def test_an_option_that_it_lacks_is_told() -> None:
    """Rather than left out, which would write other texts."""
    with pytest.raises(UserError, match=r"nothing for generation\.num_beams"):
        sampling_options({"max_new_tokens": 64, "num_beams": 4})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_its_absence_is_told(shop: Shop) -> None:
    """With the command that installs it."""
    settings = shop.plan.settings.model_copy(update={"engine": "vllm"})
    with pytest.raises(UserError, match=r"not installed. Install it with `pip install vllm`"):
        shop.describe(settings=settings)
