"""Generic pictures to pretrain the demo base model on, far more varied than the catalog's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from drawing import COLOURS, OBJECTS, PATTERNS, SHADES, Colour, Look, Scene, paint
from PIL import Image
from transformers import Qwen2VLProcessor

PICTURE_SIDE = 112
WORKERS = 2


@dataclass(frozen=True)
class PictureBank:
    """Pictures as the vision tower takes them, and the scene that each shows."""

    scenes: list[Scene]
    patches: torch.Tensor  # (pictures, patches, values)
    grid: torch.Tensor  # the (1, 3) grid that all pictures share

    def inputs(self, chosen: list[int]) -> dict[str, torch.Tensor]:
        """The model's picture inputs for some of the pictures."""
        return {
            "pixel_values": self.patches[chosen].float().flatten(0, 1),
            "image_grid_thw": self.grid.repeat(len(chosen), 1),
        }


def _any_colour(rng: random.Random, low: int, high: int) -> Colour:
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _near(colour: Colour, rng: random.Random, by: int) -> Colour:
    red, green, blue = (max(0, min(255, part + rng.randint(-by, by))) for part in colour)
    return red, green, blue


def generic_look(scene: Scene, rng: random.Random) -> Look:
    """A look from wide ranges: any wall, many sizes, angles and pattern widths."""
    pale = rng.random() < 0.8
    wall = _any_colour(rng, 195, 250) if pale else _any_colour(rng, 60, 230)
    return Look(
        base=_near(SHADES[scene.colour], rng, 14),
        light=_near((242, 240, 232), rng, 13),
        accent=_any_colour(rng, 30, 130),
        wall=wall,
        wall_top=_near(wall, rng, 25),
        floor=_near(wall, rng, 35),
        period=rng.randint(115, 165),
        slant=rng.randint(-12, 12),
        scale=rng.randint(80, 104) / 100,
        angle=rng.randint(-12, 12),
        shift=(rng.randint(-55, 55), rng.randint(-55, 55)),
        mirrored=rng.random() < 0.5,
        flatness=rng.randint(15, 100) / 100,
    )


def random_scene(rng: random.Random) -> Scene:
    """A scene with each attribute drawn by itself."""
    return Scene(rng.choice(COLOURS), rng.choice(PATTERNS), rng.choice(OBJECTS))


def generic_picture(seed: str, number: int) -> tuple[Scene, Image.Image]:
    """Picture `number` of the series `seed`; each picture has a generator of its own."""
    rng = random.Random(f"{seed}-{number}")
    scene = random_scene(rng)
    return scene, paint(scene, generic_look(scene, rng), PICTURE_SIDE, oversampling=2)


def draw_bank(seed: str, count: int, processor: Qwen2VLProcessor) -> PictureBank:
    """Draw `count` generic pictures and cut them into patches."""
    with get_context("fork").Pool(WORKERS) as pool:
        drawn = pool.map(partial(generic_picture, seed), range(count), chunksize=64)
    return bank_of(drawn, processor.image_processor)


def bank_of(drawn: list[tuple[Scene, Image.Image]], image_processor: Callable) -> PictureBank:
    """A bank of pictures that are all square."""
    parts = []
    for start in range(0, len(drawn), 500):
        pictures = [picture for _, picture in drawn[start : start + 500]]
        out = image_processor(images=pictures, return_tensors="pt")
        parts.append(out["pixel_values"].to(torch.bfloat16).view(len(pictures), -1, 1176))
    return PictureBank([scene for scene, _ in drawn], torch.cat(parts), out["image_grid_thw"][:1])
