"""The empty demo base model: tokenizer, processor and a randomly initialised tiny Qwen2-VL."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from importlib import resources

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

VOCABULARY = 2048
PICTURE_SIDE = 84
PICTURE_TOKENS = 9  # (84 / 14 patches / 2 merged) squared
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def official_chat_template() -> str:
    """The chat template of Qwen2-VL, as TRL ships it."""
    return (resources.files("trl") / "chat_templates" / "qwen2_5_vl.jinja").read_text("utf-8")


def build_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Train a byte-level BPE on `texts` and wrap it as the tokenizer class of Qwen2-VL."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=2048,
    )
    tokenizer.chat_template = official_chat_template()
    assert len(tokenizer) == VOCABULARY, f"vocabulary has {len(tokenizer)} entries"
    return tokenizer


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen2VLProcessor:
    """A processor that shows every square picture to the model at 84 x 84, as nine tokens."""
    pixels = {"shortest_edge": PICTURE_SIDE**2, "longest_edge": PICTURE_SIDE**2}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels),
        chat_template=official_chat_template(),
    )


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2VLForConditionalGeneration:
    """A randomly initialised Qwen2-VL of about three million parameters."""
    number = tokenizer.convert_tokens_to_ids
    end, padding = number("<|im_end|>"), number("<|endoftext|>")
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            # The sections share out half of the head's 48 dimensions over time, height and width.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "mrope_section": [8, 8, 8],
            },
            "bos_token_id": None,
            "eos_token_id": end,
            "pad_token_id": padding,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "embed_dim": 128,
            "hidden_size": 192,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=padding, max_new_tokens=64, do_sample=False
    )
    return model


def widen_vision_start(model: Qwen2VLForConditionalGeneration) -> None:
    """Draw the vision tower's weights as wide as their inputs ask.

    The default spread suits layers many times wider; with it, this narrow tower needs twice as
    many steps to tell patterns and objects apart.
    """
    for module in model.model.visual.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d):
            inputs = module.weight[0].numel()
            torch.nn.init.normal_(module.weight, std=1 / math.sqrt(inputs))


def seed_induction(model: Qwen2VLForConditionalGeneration) -> None:
    """Start two heads of each of the first two layers as an induction circuit.

    Left to chance, a model of this size needs far longer than the whole pretraining to discover
    how to repeat an unseen name. So the first layer starts with heads that look one token back
    and write down a sketch of what they find; the second starts with heads that look for the
    place whose sketch matches the current token, and carry forward what stands there. These are
    only starting values: pretraining trains every one of them further.
    """
    text = model.config.text_config
    width, head = text.hidden_size, text.hidden_size // text.num_attention_heads
    half, theta = head // 2, text.rope_parameters["rope_theta"]
    angles = torch.tensor([theta ** (-index / half) for index in range(half)])
    near, strength = 6, 8.0  # the fastest rotations tell neighbouring positions apart
    # A match must not depend on distance, so it uses the dimensions that rotate slowly.
    slow = [*range(8, half), *range(half + 8, head)]
    first, second = (layer.self_attn for layer in model.model.language_model.layers[:2])
    sketch, written, carried = (_orthonormal_rows(width) for _ in range(3))
    with torch.no_grad():
        # Distinct embeddings, which the tied head can tell apart.
        model.model.language_model.embed_tokens.weight.normal_(0.0, 1 / math.sqrt(width))
        for group in range(text.num_key_value_heads):
            keys = slice(head * group, head * (group + 1))
            start = 2 * head * group  # one of the two query heads of this group
            queries = slice(start, start + head)
            first.q_proj.weight[queries] *= 0.2
            first.k_proj.weight[keys] *= 0.2
            first.q_proj.bias[start : start + near] = strength
            turned = slice(head * group + half, head * group + half + near)
            first.k_proj.bias[head * group : head * group + near] = strength * angles[:near].cos()
            first.k_proj.bias[turned] = strength * angles[:near].sin()
            first.v_proj.weight[keys] = sketch[keys]
            first.o_proj.weight[:, queries] = 0.2 * written[keys].T
            for projection, rows, found in (
                (second.q_proj, queries, sketch),
                (second.k_proj, keys, written),
            ):
                weight = projection.weight[rows].clone()
                weight[slow] = 1.2 * found[keys][slow]
                projection.weight[rows] = weight
            second.v_proj.weight[keys] = carried[keys]
            second.o_proj.weight[:, queries] = 0.3 * carried[keys].T


def _orthonormal_rows(width: int) -> torch.Tensor:
    """A random rotation, drawn from torch's seeded generator."""
    return torch.linalg.qr(torch.randn(width, width)).Q
