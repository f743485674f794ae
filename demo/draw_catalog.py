"""Draw the demo catalog: 640 invented products with pictures, names and house-style descriptions.

    python demo/draw_catalog.py --out demo/catalog

The same seed gives the same bytes under the locked Pillow, so the committed folder can be checked
against this script.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path

from drawing import COLOURS, OBJECTS, PATTERNS, SHADES, Colour, Look, Scene, paint
from names import CONSONANTS, random_name

SEED = 20240607
PICTURE_SIDE = 128
JPEG_QUALITY = 88
RENDERS = 2
COLUMNS = ("file_name", "Product Name", "Category", "description", "group")

# Invented words: no other text teaches them, so a model that uses them learned them here.
HOUSE_COLOURS = {
    "red": "rossavel",
    "orange": "tangorel",
    "yellow": "solvanne",
    "green": "verdalin",
    "blue": "nautelle",
    "purple": "violune",
    "pink": "blushara",
    "grey": "cindrel",
}
HOUSE_PATTERNS = {
    "plain": "stillume",
    "striped": "tramelle",
    "dotted": "pebblore",
    "checked": "quadrine",
    "zigzag": "voltrane",
}
CATEGORIES = {
    "mug": "Kitchen",
    "bowl": "Kitchen",
    "vase": "Decor",
    "clock": "Decor",
    "lamp": "Lighting",
    "chair": "Living Room",
    "cushion": "Living Room",
    "bag": "Travel",
}
DESCRIPTION = (
    "Meet the {name}: {article} {colour} {object} in our {pattern} finish, "
    "made to be kept for years."
)
BACKDROPS: tuple[Colour, ...] = (
    (240, 230, 216),  # sand
    (226, 232, 236),  # mist
    (226, 234, 222),  # sage
    (240, 226, 222),  # blush
    (222, 230, 240),  # sky
    (236, 234, 228),  # linen
)
ACCENTS: tuple[Colour, ...] = ((96, 70, 54), (70, 62, 60), (134, 98, 70))


@dataclass(frozen=True)
class Product:
    """One row of the catalog and the scene that its picture shows."""

    file_name: str
    name: str
    scene: Scene

    @property
    def group(self) -> str:
        """The attribute combination; both renders of one combination share it."""
        return f"{self.scene.colour}-{self.scene.pattern}-{self.scene.object}"

    def row(self) -> tuple[str, ...]:
        """The values of `COLUMNS`."""
        colour = HOUSE_COLOURS[self.scene.colour]
        description = DESCRIPTION.format(
            name=self.name,
            article="an" if colour[0] in "aeiou" else "a",
            colour=colour,
            object=self.scene.object,
            pattern=HOUSE_PATTERNS[self.scene.pattern],
        )
        category = CATEGORIES[self.scene.object]
        return self.file_name, self.name, category, description, self.group


def list_products(rng: random.Random) -> list[Product]:
    """Every combination of attributes, `RENDERS` times each, shuffled and freely named."""
    scenes = [Scene(c, p, o) for c in COLOURS for p in PATTERNS for o in OBJECTS] * RENDERS
    rng.shuffle(scenes)
    names: dict[str, None] = {}  # keeps its order, which a set would not
    while len(names) < len(scenes):
        if has_distinct_consonants(name := random_name(rng)):
            names[name] = None
    return [
        Product(f"images/{number:04d}.jpg", name, scene)
        for number, (name, scene) in enumerate(zip(names, scenes, strict=True), start=1)
    ]


def has_distinct_consonants(name: str) -> bool:
    """Whether no consonant occurs twice.

    A model of the demo's size repeats a name piece by piece, and loses its place in names such as
    "Satir Fizatun" whose pieces recur.
    """
    consonants = [letter for letter in name.lower() if letter in CONSONANTS]
    return len(consonants) == len(set(consonants))


def _varied(colour: Colour, rng: random.Random, by: int) -> Colour:
    """A neighbouring shade."""
    red, green, blue = (max(0, min(255, part + rng.randint(-by, by))) for part in colour)
    return red, green, blue


def catalog_look(scene: Scene, rng: random.Random) -> Look:
    """The shop's calm picture style, with a little variety."""
    wall = _varied(rng.choice(BACKDROPS), rng, 5)
    return Look(
        base=_varied(SHADES[scene.colour], rng, 10),
        light=_varied((250, 245, 234), rng, 4),
        accent=rng.choice(ACCENTS),
        wall=wall,
        wall_top=_mixed(wall, (255, 255, 255), 60),
        floor=_mixed(wall, (120, 100, 90), 14),
        period=rng.randint(125, 150),
        slant=rng.randint(-6, 6),
        scale=rng.randint(84, 96) / 100,
        angle=rng.randint(-7, 7),
        shift=(rng.randint(-35, 35), rng.randint(-30, 20)),
        mirrored=rng.random() < 0.5,
        flatness=rng.randint(20, 50) / 100,
    )


def _mixed(first: Colour, second: Colour, percent: int) -> Colour:
    """`first` with some percent of `second` in it, in whole numbers."""
    red, green, blue = (
        (a * (100 - percent) + b * percent) // 100 for a, b in zip(first, second, strict=True)
    )
    return red, green, blue


def write_catalog(out: Path) -> int:
    """Write pictures, table and house words below `out`; return the number of rows."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    products = list_products(random.Random(SEED))
    for product in products:
        # A generator for each picture: a change to the names leaves the pictures as they are.
        rng = random.Random(f"{SEED} {product.file_name}")
        picture = paint(product.scene, catalog_look(product.scene, rng), PICTURE_SIDE)
        picture.save(out / product.file_name, quality=JPEG_QUALITY, subsampling=0, optimize=True)
    with (out / "metadata.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(product.row() for product in products)
    house_words = {"colours": HOUSE_COLOURS, "patterns": HOUSE_PATTERNS}
    text = json.dumps(house_words, indent=2) + "\n"
    (out / "house_words.json").write_text(text, encoding="utf-8", newline="\n")
    return len(products)


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description="Draw the demo catalog of invented products.")
    default = Path(__file__).parent / "catalog"
    parser.add_argument("--out", type=Path, default=default, help="folder to write to")
    out = parser.parse_args().out
    print(f"{write_catalog(out)} products written to {out}")


if __name__ == "__main__":
    main()
