"""vLLM as far as it can be tried without it: what it is told, and that its absence is."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.describing.conftest import Shop
from vlmtune.describing.vllm_engine import sampling_options, written_text
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


@pytest.mark.parametrize(("reason", "cut"), [("stop", False), ("length", True)])
def test_a_text_that_was_cut(reason: str, cut: bool) -> None:
    """vLLM says why it stopped."""
    output = SimpleNamespace(text=" A mug.", token_ids=[5, 6], finish_reason=reason)
    found = written_text(3, output, 0.5)
    assert (found.row, found.text, found.tokens, found.cut) == (3, "A mug.", 2, cut)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_its_absence_is_told(shop: Shop) -> None:
    """With the command that installs it."""
    settings = shop.plan.settings.model_copy(update={"engine": "vllm"})
    with pytest.raises(UserError, match=r"not installed. Install it with `pip install vllm`"):
        shop.describe(settings=settings)
