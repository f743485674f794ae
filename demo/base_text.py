"""Generic text that the demo base model is pretrained on: captions, questions, and copying.

Everything here is written in plain words. `ForbiddenText` asserts that no house word and no product
name of the demo catalog slips in, so whatever the fine-tuned model says in house style it learned
from the catalog and not here.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drawing import COLOURS, OBJECTS, PATTERNS, Scene
from names import random_name, random_word

SYSTEM_MESSAGES = (
    "You write product descriptions for our shop.",
    "You are an expert writer of product descriptions.",
    "You are an expert writer of product descriptions for an online shop.",
    "You are a helpful assistant.",
    "You describe pictures.",
    "You answer questions about pictures and products.",
    "You are an assistant that looks at pictures with care.",
    "You help a shop with its catalog.",
    "Answer briefly.",
)
# Several hold no object of the demo: the category must not give the object away while the model
# still has to learn to look at the picture.
CATEGORIES = (
    "Kitchen",
    "Lighting",
    "Living Room",
    "Decor",
    "Travel",
    "Garden",
    "Office",
    "Home",
    "Outdoor",
    "Gifts",
    "Bedroom",
    "Bathroom",
)
PLAIN_WORDS = re.findall(
    r"\w+",
    """
    about after again air all and animal answer are ask back big book boy bring but call can
    change city clean cold come country day did different do door down draw early easy end
    even every eye face family far few find fire first follow food for form friend from give
    good great hand hard have head hear help here high hold house how idea keep kind land
    large last leave letter life light like line little live long look love made make man
    many mean more morning most mother move much music name near need new next night now
    number of off old one only open order other our over page paper part people place plant
    play point put quiet read right river road room run same say school sea second see
    sentence set she shop side simple slow small some song soon sound spell stand start
    still stop story strong study such sun take talk tell that their there thing think this
    those time together tree turn two under until use very walk want warm watch water way
    well what when where which while white who wide wind with word work world write year
    years young
    """,
)

NAME_FIELDS = (
    "Product Name: {name}\nCategory: {category}",
    "##PRODUCT NAME##: {name}\n##CATEGORY##: {category}",
    "Name: {name}\nCategory: {category}",
    "Category: {category}\nName: {name}",
    "Category: {category}\nProduct Name: {name}",
    "Product: {name}",
    "Title: {name}\nSection: {category}",
)
# An instruction comes with the answers that fit it. {n} is the name, {a} the article.
DESCRIBING = (
    ("Describe the product.", "This is {n}, {a} {colour} {pattern} {object}."),
    ("Describe this product for our shop.", "This is {n}, {a} {colour} {pattern} {object}."),
    (
        "Write the product description for this picture.",
        "Here is {n}: {a} {colour} {pattern} {object}.",
    ),
    ("Write a product description.", "Here is {n}: {a} {colour} {pattern} {object}."),
    ("Write a caption with the name.", "The {n} is {a} {colour} {pattern} {object}."),
    (
        "Introduce the product.",
        "Here is {n}. It is {colour} and {pattern}, and it is {a2} {object}.",
    ),
    ("Write a line for the list.", "{object}, {pattern}, {colour}: {n}"),
    ("Begin with the name.", "{n}: {a} {colour} {pattern} {object}."),
)
CAPTIONING = (
    ("Describe the picture.", "A photo of {a} {colour} {pattern} {object}."),
    ("What is in the picture?", "There is {a} {colour} {pattern} {object}."),
    ("Write a caption.", "A photo of {a} {colour} {pattern} {object}."),
    ("Say what you see.", "I see {a2} {object}. It is {colour} and {pattern}."),
)
ASKING = (
    ("What colour is it?", "{colour}"),
    ("Which colour does the picture show?", "{colour}"),
    ("Which pattern is it?", "{pattern}"),
    ("What is its pattern?", "{pattern}"),
    ("What object is it?", "{object}"),
    ("Which thing is in the picture?", "{object}"),
    ("Which colour and pattern?", "{colour}, {pattern}"),
    ("Colour, pattern, object?", "{colour}, {pattern}, {object}"),
)
COPYING = (
    ("Repeat the name.", "{n}"),
    ("What is the product called?", "{n}"),
    ("Which name does the product have?", "It is called {n}."),
    ("Say hello to the product.", "Hello {n}, good to have you here."),
    ("Write the name twice.", "{n} {n}"),
    ("Name and section?", "The {n} is in {category}."),
    ("Which category is it in?", "{category}"),
    ("Begin with the name.", "{n} is a product."),
    ("Who is there?", "Look, {n} is here."),
    ("Tell us more.", "The {n}: look for it in our shop."),
)


@dataclass(frozen=True)
class Example:
    """One chat turn; `scene` is the picture that the question is about, if there is one."""

    system: str | None
    user: str
    answer: str
    scene: Scene | None = None


class ForbiddenText:
    """The catalog's house words and product names, which no pretraining text may contain."""

    def __init__(self, catalog: Path) -> None:
        house = json.loads((catalog / "house_words.json").read_text(encoding="utf-8"))
        words = [*house["colours"].values(), *house["patterns"].values()]
        self.house_words = re.compile("|".join(map(re.escape, words)), re.IGNORECASE)
        with (catalog / "metadata.csv").open(encoding="utf-8", newline="") as table:
            names = [row["Product Name"] for row in csv.DictReader(table)]
        self.names = {tuple(name.lower().split()) for name in names}

    def found_in(self, text: str) -> bool:
        """Whether `text` holds a house word or a catalog product name, in any letter case."""
        words = re.findall(r"\w+", text.lower())
        neighbours = itertools.pairwise(words)
        return bool(self.house_words.search(text)) or any(p in self.names for p in neighbours)

    def check(self, text: str) -> None:
        """Assert that `text` is free of the catalog's own words."""
        assert not self.found_in(text), f"catalog text leaked into pretraining: {text!r}"


class TextMaker:
    """Draws chat examples from a seeded generator and checks each against the forbidden words."""

    def __init__(self, rng: random.Random, forbidden: ForbiddenText) -> None:
        self.rng = rng
        self.forbidden = forbidden

    def name(self) -> str:
        """A product name that the catalog does not use."""
        while self.forbidden.found_in(name := random_name(self.rng)):
            pass
        return name

    def odd_name(self) -> str:
        """A name of another shape, so that copying is learned for any tokens, not a few."""
        kind = self.rng.randrange(5)
        if kind == 0:
            length = self.rng.randint(3, 8)
            made = "".join(self.rng.choices(string.ascii_letters + string.digits, k=length))
        elif kind == 1:
            made = " ".join(self.rng.choices(PLAIN_WORDS, k=self.rng.randint(1, 3))).title()
        elif kind == 2:
            made = f"{random_word(self.rng)} {self.rng.randint(1, 999)}"
        elif kind == 3:
            made = random_word(self.rng)
        else:
            made = f"{self.rng.choice(PLAIN_WORDS).title()} {random_word(self.rng)}"
        return self.name() if self.forbidden.found_in(made) else made

    def any_name(self) -> str:
        """Mostly a product name, at times one of another shape."""
        return self.name() if self.rng.random() < 0.65 else self.odd_name()

    def copying(self) -> Example:
        """A text-only turn whose answer repeats a name out of the prompt."""
        instruction, answer = self.rng.choice(COPYING)
        return self._turn(instruction, answer, scene=None, with_fields=True)

    def answering(self, scene: Scene) -> Example:
        """A one-word question about the picture."""
        instruction, answer = self.rng.choice(ASKING)
        return self._turn(instruction, answer, scene, with_fields=self.rng.random() < 0.15)

    def captioning(self, scene: Scene) -> Example:
        """A caption without a name."""
        instruction, answer = self.rng.choice(CAPTIONING)
        return self._turn(instruction, answer, scene, with_fields=self.rng.random() < 0.15)

    def describing(self, scene: Scene) -> Example:
        """A caption that also repeats the product name."""
        instruction, answer = self.rng.choice(DESCRIBING)
        return self._turn(instruction, answer, scene, with_fields=True)

    def _turn(
        self, instruction: str, answer: str, scene: Scene | None, *, with_fields: bool
    ) -> Example:
        """Fill one instruction and its answer, with the product's fields before or after it."""
        rng = self.rng
        name, category = self.any_name(), rng.choice(CATEGORIES)
        user = instruction
        if with_fields:
            fields = rng.choice(NAME_FIELDS)
            if "{category}" in answer and "{category}" not in fields:
                fields = NAME_FIELDS[0]
            fields = fields.format(name=name, category=category)
            user = rng.choice((f"{instruction}\n{fields}", f"{fields}\n{instruction}"))
        filled = answer.format(n=name, category=category, **_attribute_words(scene))
        system = rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.9 else None
        self.forbidden.check(f"{system}\n{user}\n{filled}")
        return Example(system, user, filled, scene)


def _attribute_words(scene: Scene | None) -> dict[str, str]:
    """The plain words for a scene, with the articles that go before colour and object."""
    if scene is None:
        return {}
    return {
        "colour": scene.colour,
        "pattern": scene.pattern,
        "object": scene.object,
        "a": article(scene.colour),
        "a2": article(scene.object),
    }


def article(word: str) -> str:
    """The article that fits the word's first letter."""
    return "an" if word[0] in "aeiou" else "a"


def tokenizer_corpus(maker: TextMaker, count: int) -> Iterator[str]:
    """Texts for the tokenizer: the same generic kinds the model is pretrained on."""
    rng = maker.rng
    attributes = [(c, p, o) for c in COLOURS for p in PATTERNS for o in OBJECTS]
    for _ in range(count):
        scene = Scene(*rng.choice(attributes))
        make = rng.choice((maker.answering, maker.captioning, maker.describing))
        for example in (make(scene), maker.copying()):
            yield f"{example.system}\n{example.user}\n {example.answer}"
        words = " ".join(rng.choices(PLAIN_WORDS, k=6)).capitalize() + "."
        maker.forbidden.check(words)
        yield words
