"""Invented product names: pronounceable words that mean nothing and say nothing about a product.

Both the demo catalog and the pretraining text draw their names here, from different seeds; the
pretraining text refuses every name that the catalog uses (see `base_text.ForbiddenText`).
"""

from __future__ import annotations

import random

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
FINAL_CONSONANTS = "nrls"


def random_word(rng: random.Random) -> str:
    """One capitalised word of two or three syllables, such as "Tovikar"."""
    syllable_count = rng.choice((2, 2, 3))
    syllables = [rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllable_count)]
    ending = rng.choice(FINAL_CONSONANTS) if rng.random() < 0.5 else ""
    return ("".join(syllables) + ending).capitalize()


def random_name(rng: random.Random) -> str:
    """A product name of two invented words, such as "Tovikar Mesu"."""
    return f"{random_word(rng)} {random_word(rng)}"
