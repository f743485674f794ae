"""The loop that writes token by token, without waiting for the GPU.

transformers' own loop asks after each token whether all rows have ended, so the GPU stands idle
while the CPU prepares the next step. Here the next step's inputs follow from the last one's on the
GPU, and the question is asked every few tokens; rows that have ended get padding meanwhile.
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        PreTrainedModel,
        StoppingCriteriaList,
    )

LOOK_EVERY = 16  # tokens


def write_ahead(
    model: "PreTrainedModel",
    input_ids: torch.Tensor,
    logits_processor: "LogitsProcessorList",
    stopping_criteria: "StoppingCriteriaList",
    generation_config: "GenerationConfig",
    **given: Any,
) -> torch.Tensor:
    """What `generate` takes as its `custom_generate`, for a static cache that holds all of the
    prompts but their last tokens. Greedy or sampled, one answer a row.

    Args:
        input_ids: [rows, tokens], padded on the left.
        given: the other inputs of the model's `prepare_inputs_for_generation`, with positions.

    Returns:
        [rows, tokens + new tokens]; rows that ended earlier are filled with padding.
    """
    filler = _filler(generation_config)
    inputs = model.prepare_inputs_for_generation(
        input_ids, next_sequence_length=1, is_first_iteration=False, **given
    )
    written, longest = input_ids, generation_config.max_length
    ended = torch.zeros(len(written), dtype=torch.bool, device=written.device)
    place = torch.tensor([written.shape[1]], device=written.device)  # in the cache, of what is new
    while True:
        logits = model(**inputs, return_dict=True).logits[:, -1].to(torch.float32, copy=True)
        scores = logits_processor(written, logits)
        if generation_config.do_sample:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1)
        else:
            tokens = scores.argmax(dim=-1, keepdim=True)
        tokens = torch.where(ended[:, None], filler, tokens)
        written = torch.cat([written, tokens], dim=-1)
        ended = ended | stopping_criteria(written, None)
        new = written.shape[1] - input_ids.shape[1]
        if written.shape[1] >= longest or (new % LOOK_EVERY == 0 and bool(ended.all())):
            return written
        inputs = _next_step(inputs, tokens, place)
        place = place + 1


def _next_step(inputs: dict[str, Any], tokens: torch.Tensor, place: torch.Tensor) -> dict[str, Any]:
    """A step's inputs from those of the step before: the tokens it wrote, one position on, and
    their place in the cache can be seen."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, dict):
        seen: Any = {kind: _with_place(each, place) for kind, each in mask.items()}
    else:
        seen = _with_place(mask, place)
    following = {"input_ids": tokens, "attention_mask": seen}
    return {**inputs, **following, "position_ids": inputs["position_ids"] + 1}


def _with_place(mask: torch.Tensor | None, place: torch.Tensor) -> torch.Tensor | None:
    """A mask that shows one more place: True where it is bool, 0 where it is added to scores."""
    return None if mask is None else mask.index_fill(-1, place, mask.dtype == torch.bool)


def _filler(config: "GenerationConfig") -> torch.Tensor | int:
    """The token of rows that have ended."""
    ends = config.eos_token_id
    if config.pad_token_id is not None or ends is None:
        return config.pad_token_id or 0
    return ends[0] if isinstance(ends, list) else ends
