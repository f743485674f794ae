"""Held-out scores of the demo base model: does it see, and does it copy names it never saw?"""

from __future__ import annotations

import random
import re

import torch
from base_pictures import PictureBank
from base_text import CATEGORIES, Example, TextMaker
from base_training import ChatEncoder
from transformers import Qwen2VLForConditionalGeneration

SYSTEM = "You write product descriptions for our shop."
PROMPT = "Describe this product for our shop.\n##PRODUCT NAME##: {name}\n##CATEGORY##: {category}"


def generate(
    model: Qwen2VLForConditionalGeneration,
    encoder: ChatEncoder,
    examples: list[Example],
    bank: PictureBank,
) -> list[str]:
    """Greedy answers; example i asks about picture i of the bank."""
    answers: list[str] = []
    for start in range(0, len(examples), 50):
        part = examples[start : start + 50]
        batch = encoder.generation_batch(part)
        pictures = bank.inputs(list(range(start, start + len(part))))
        pictures["pixel_values"] = pictures["pixel_values"].to(model.dtype)
        with torch.no_grad():
            out = model.generate(**batch, **pictures, max_new_tokens=40, do_sample=False)
        new = out[:, batch["input_ids"].shape[1] :]
        answers += encoder.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def score(
    model: Qwen2VLForConditionalGeneration,
    encoder: ChatEncoder,
    maker: TextMaker,
    bank: PictureBank,
) -> dict[str, float | int]:
    """Shares of held-out pictures whose colour, pattern, object and given name are all in place."""
    rng = random.Random("scores")
    names = [maker.name() for _ in bank.scenes]
    examples = [
        Example(SYSTEM, PROMPT.format(name=name, category=rng.choice(CATEGORIES)), "", scene)
        for name, scene in zip(names, bank.scenes, strict=True)
    ]
    answers = generate(model.eval(), encoder, examples, bank)
    said = [set(re.findall(r"\w+", answer)) for answer in answers]
    scenes, count = bank.scenes, len(answers)
    right = {
        "colour": sum(scene.colour in words for scene, words in zip(scenes, said, strict=True)),
        "pattern": sum(scene.pattern in words for scene, words in zip(scenes, said, strict=True)),
        "object": sum(scene.object in words for scene, words in zip(scenes, said, strict=True)),
        "name_copied": sum(name in answer for name, answer in zip(names, answers, strict=True)),
    }
    return {key: round(value / count, 4) for key, value in right.items()} | {"pictures": count}
