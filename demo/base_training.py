"""The pretraining phases of the demo base model: copying, seeing, then talking about pictures."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator

import torch
from base_model import PICTURE_TOKENS
from base_pictures import PictureBank
from base_text import Example, TextMaker
from drawing import COLOURS, OBJECTS, PATTERNS
from torch import nn
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

IGNORED = -100
Batch = dict[str, torch.Tensor]


class ChatEncoder:
    """Turns chat examples into model inputs, with the loss on the answers alone."""

    def __init__(self, processor: Qwen2VLProcessor) -> None:
        self.tokenizer = processor.tokenizer
        number = self.tokenizer.convert_tokens_to_ids
        self.picture, self.padding = number("<|image_pad|>"), number("<|endoftext|>")

    def prompt(self, example: Example) -> list[int]:
        """Token ids up to where the answer begins."""
        content = [{"type": "text", "text": example.user}]
        if example.scene is not None:
            content.insert(0, {"type": "image"})
        messages = [{"role": "user", "content": content}]
        if example.system is not None:
            messages.insert(0, {"role": "system", "content": example.system})
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        text = text.replace("<|image_pad|>", "<|image_pad|>" * PICTURE_TOKENS)
        return self.tokenizer(text)["input_ids"]

    def answer(self, example: Example) -> list[int]:
        """Token ids of the answer and the end of its turn."""
        return self.tokenizer(f"{example.answer}<|im_end|>\n")["input_ids"]

    def training_batch(self, examples: list[Example]) -> Batch:
        """Right-padded inputs and labels."""
        rows = [(self.prompt(example), self.answer(example)) for example in examples]
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), longest), self.padding)
        labels = torch.full_like(ids, IGNORED)
        mask = torch.zeros_like(ids)
        for index, (prompt, answer) in enumerate(rows):
            length = len(prompt) + len(answer)
            ids[index, :length] = torch.tensor(prompt + answer)
            labels[index, len(prompt) : length] = torch.tensor(answer)
            mask[index, :length] = 1
        return self._with_types(ids, mask) | {"labels": labels}

    def generation_batch(self, examples: list[Example]) -> Batch:
        """Left-padded prompts."""
        rows = [self.prompt(example) for example in examples]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.padding)
        mask = torch.zeros_like(ids)
        for index, prompt in enumerate(rows):
            ids[index, longest - len(prompt) :] = torch.tensor(prompt)
            mask[index, longest - len(prompt) :] = 1
        return self._with_types(ids, mask)

    def _with_types(self, ids: torch.Tensor, mask: torch.Tensor) -> Batch:
        types = (ids == self.picture).int()
        return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}


def repeated_tokens(rows: int, length: int, vocabulary: int) -> Batch:
    """Noise in which one run of random tokens occurs twice; only its second half is learned."""
    ids = torch.randint(0, vocabulary, (rows, length))
    labels = torch.full_like(ids, IGNORED)
    for row in range(rows):
        run = int(torch.randint(3, length // 2 + 1, ()))
        gap = int(torch.randint(0, length - 2 * run + 1, ()))
        start = int(torch.randint(0, length - 2 * run - gap + 1, ()))
        again = start + run + gap
        ids[row, again : again + run] = ids[row, start : start + run]
        labels[row, again + 1 : again + run] = ids[row, again + 1 : again + run]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def optimise(
    name: str,
    parameters: list[nn.Parameter],
    loss_of_step: Callable[[int], torch.Tensor],
    steps: int,
    peak_rate: float,
) -> None:
    """Run AdamW with a short warm-up and a cosine decay, and print how the loss goes."""
    optimiser = torch.optim.AdamW(parameters, lr=peak_rate, betas=(0.9, 0.95), weight_decay=0.01)
    started, recent = time.monotonic(), []
    for step in range(steps):
        warm = min(1.0, (step + 1) / min(40, steps))
        rate = peak_rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of_step(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean, seconds = sum(recent) / len(recent), time.monotonic() - started
            print(f"{name}: step {step + 1}/{steps}, loss {mean:.3f}, {seconds:.0f} s", flush=True)
            recent.clear()


def learn_copying(model: Qwen2VLForConditionalGeneration, steps: int) -> None:
    """Random tokens, repeated: nothing but copying helps here."""
    vocabulary = min(model.config.image_token_id, model.config.text_config.eos_token_id)

    def loss_of_step(step: int) -> torch.Tensor:
        batch = repeated_tokens(rows=24, length=40, vocabulary=vocabulary)
        return model(**batch, use_cache=False).loss

    parameters = list(model.model.language_model.parameters())
    optimise("copying", parameters, loss_of_step, steps, peak_rate=1.5e-3)


def learn_seeing(model: Qwen2VLForConditionalGeneration, bank: PictureBank, steps: int) -> None:
    """Train the vision tower with three classifiers that are thrown away afterwards."""
    kinds = (("colour", COLOURS), ("pattern", PATTERNS), ("object", OBJECTS))
    width = model.config.text_config.hidden_size
    heads = nn.ModuleList(nn.Linear(width, len(words)) for _, words in kinds)
    targets = [
        torch.tensor([words.index(getattr(scene, kind)) for scene in bank.scenes])
        for kind, words in kinds
    ]
    visual = model.model.visual
    order = _picture_order(len(bank.scenes))

    def loss_of_step(step: int) -> torch.Tensor:
        chosen = [next(order) for _ in range(64)]
        inputs = bank.inputs(chosen)
        tokens = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        pooled = tokens.view(len(chosen), PICTURE_TOKENS, width).mean(dim=1)
        losses = [
            nn.functional.cross_entropy(head(pooled), target[chosen])
            for head, target in zip(heads, targets, strict=True)
        ]
        return torch.stack(losses).sum()

    parameters = [*visual.parameters(), *heads.parameters()]
    optimise("seeing", parameters, loss_of_step, steps, peak_rate=1.5e-3)


def learn_talking(
    model: Qwen2VLForConditionalGeneration,
    encoder: ChatEncoder,
    bank: PictureBank,
    maker: TextMaker,
    steps: int,
) -> None:
    """Chat about pictures, short answers first, with name copying all along."""
    rng = maker.rng
    order = _picture_order(len(bank.scenes))

    def one(progress: float) -> tuple[Example, int | None]:
        draw = rng.random()
        if draw < 0.2:
            return maker.copying(), None
        picture = next(order)
        scene = bank.scenes[picture]
        if draw < 0.8 - 0.5 * min(1.0, progress * 2):
            return maker.answering(scene), picture
        if draw < 0.8 - 0.3 * min(1.0, progress * 2):
            return maker.captioning(scene), picture
        return maker.describing(scene), picture

    def loss_of_step(step: int) -> torch.Tensor:
        drawn = [one(step / steps) for _ in range(32)]
        batch = encoder.training_batch([example for example, _ in drawn])
        pictures = bank.inputs([number for _, number in drawn if number is not None])
        return model(**batch, **pictures, use_cache=False).loss

    optimise("talking", list(model.parameters()), loss_of_step, steps, peak_rate=1.5e-3)


def _picture_order(count: int) -> Iterator[int]:
    """Picture numbers without end, in a new order each time round."""
    rng = random.Random("picture order")
    while True:
        yield from rng.sample(range(count), count)
