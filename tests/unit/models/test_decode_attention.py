"""Attention of one new token a row gives what transformers' SDPA gives."""

from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.tolerance import assert_within, attention_bound
from tests.unit.families import FAMILIES, prompts
from vlmtune.models.decode_attention import heads_together, shared_reading


class Attention:
    """What SDPA asks of an attention layer."""

    num_key_value_groups, is_causal, training = 4, True, False


def test_heads_that_share_a_key_read_it_together() -> None:
    """One new token a row, some keys masked: as SDPA with copied keys."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, *shape, 16) for shape in [(8, 1), (2, 9), (2, 9)])
    mask = torch.ones(3, 1, 1, 9, dtype=torch.bool)
    mask[0, ..., :4] = False
    module: Any = Attention()
    for each in (mask, None):
        own, _ = sdpa_attention_forward(module, query, key, value, each, scaling=0.3)
        together = heads_together(query, key, value, each, 0.3)
        visible = torch.ones(3, 9, dtype=torch.bool) if each is None else each[:, 0, 0]
        bound = attention_bound(query[:, :, 0], key, value, visible, 0.3)
        assert_within(together[:, :, 0], own[:, 0], 2 * bound)  # both of them are rounded


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_answers_are_those_of_the_models_own_attention(name: str) -> None:
    """The prompt takes the model's own way; afterwards the model is as it was."""
    model: Any = FAMILIES[name].model()
    inputs = prompts(FAMILIES["qwen2_vl"], [(2, 3), (4, 4)])
    options = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": "static"}
    own = model.generate(**inputs, **options)
    with shared_reading(model):
        shared = model.generate(**inputs, **options)
    assert torch.equal(own, shared)
    assert model.config.get_text_config()._attn_implementation == "sdpa"
