"""Each rule of the trade: what breaks it, and what does not."""

from typing import Any

import pytest

from vlmtune.config.evaluation import RulesConfig
from vlmtune.evaluation.rules import CHECKS, Answer, broken_rules

PROMPT = ["You write product descriptions.", "Describe this product.\n##NAME##: Blue Mug 300 ml"]
FIELDS = {"name": "Blue Mug", "category": "Kitchen"}
REFERENCE = "The Blue Mug holds 300 ml and is safe in the dishwasher for many years to come."
RULES = RulesConfig(named_fields=["name"], banned=["best price", "free"])


def broken(text: str, rules: RulesConfig = RULES, **changes: Any) -> dict[str, str]:
    """What is wrong with a description of the mug."""
    answer = {"reference": REFERENCE, "fields": FIELDS, "prompt": PROMPT, **changes}
    return broken_rules(Answer(text, **answer), rules)


@pytest.mark.parametrize(
    "text",
    [
        REFERENCE,
        "The blue  mug: freely dishwasher-safe.",
        "Blue Mug, 300 ml; 5 < 6 is no HTML, and <M> is a size.",
        "Blue Mug & lid; AT&T; very, very, very good.",
        "Blue Mug\n\nKitchen",
    ],
)
def test_good_descriptions(text: str) -> None:
    """Nothing is found in them."""
    assert broken(text, reference=f"{REFERENCE} 5 6") == {}


@pytest.mark.parametrize(
    ("rule", "text", "said"),
    [
        ("empty", " \n", "no description"),
        ("missing_name", "A blue cup.", "name is not named: 'Blue Mug'"),
        ("banned_phrase", "The Blue Mug at the BEST  price.", "'best price'"),
        ("banned_phrase", "Blue Mug, free!", "'free'"),
        ("html", "<b>Blue Mug</b>", "<b>"),
        ("html", "Blue Mug &amp; lid", "&amp;"),
        ("prompt_leak", "Blue Mug<|im_end|>", "<|im_end|>"),
        ("prompt_leak", "Blue Mug. Describe this product.", "describe this product."),
        ("prompt_leak", "##NAME##: Blue Mug 300 ml", "##name##"),
        ("repetition", "Blue Mug " * 5, "'blue mug' again and again"),
        ("repetition", "Blue Mug is so so so so so good.", "'so' again and again"),
        ("repetition", "Blue Mug haaaaaaaaaaaa", "'a' again and again"),
        ("repetition", "Blue Mug 杯子杯子杯子杯子杯子杯子杯子杯子", "again and again"),
        ("language", "Le Blue Mug est une tasse très solide pour toute la famille.", "'fr'"),
        ("invented_number", "The Blue Mug holds 500 ml.", "500"),
        ("invented_number", "The Blue Mug holds 3.00 cups.", "number 3 is"),
    ],
)
def test_broken_rules(rule: str, text: str, said: str) -> None:
    """The rule is named, with what was found; no other one is broken but by the way."""
    found = broken(text)
    assert said in found[rule]
    assert set(found) <= {rule, "missing_name", "repetition"}


def test_length_window() -> None:
    """Both ends, in characters."""
    rules = RulesConfig(min_length=10, max_length=12)
    assert broken("123456789a", rules, reference="123456789a") == {}
    assert "9 characters, at least 10" in broken("abcdefghi", rules)["length"]
    assert "13 characters, at most 12" in broken("abcdefghijklm", rules)["length"]


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("1,000 pieces", "1000 pieces"),
        ("1.000,50 euros", "1,000.5 euros"),
        ("1 lamp of 05 watts", "1 lamp, 5 watts"),
        ("12.50 cm", "12.5 cm"),
        ("12,0 cm", "12 cm"),
        ("4'500 rpm", "4500 rpm"),
        ("0.5 l", "0.50 l"),
    ],
)
def test_a_number_may_be_written_otherwise(text: str, reference: str) -> None:
    """Groups of digits, decimal commas and zeros at the ends say nothing."""
    rules = RulesConfig()
    assert "invented_number" not in broken(text, rules, reference=reference, prompt=[], fields={})
    assert "invented_number" in broken(text, rules, reference="", prompt=[], fields={})


def test_a_reference_may_say_what_the_prompt_says() -> None:
    """And a field's value is no leak."""
    line = "Describe this product."
    assert "prompt_leak" not in broken(f"Blue Mug. {line}", reference=f"Blue Mug. {line}")
    name = {"name": "Describe this product. Now"}
    assert "prompt_leak" not in broken(line, fields=name)


def test_without_a_reference() -> None:
    """A new catalog has none: nothing is held against it."""
    assert broken("Blue Mug, 300 ml: a fine mug for the whole family.", reference="") == {}


@pytest.mark.parametrize(
    ("key", "text", "rule"),
    [
        ("no_html", "<b>Blue Mug</b>", "html"),
        ("no_prompt_leak", "Blue Mug<|im_end|>", "prompt_leak"),
        ("no_repetition", "Blue Mug " * 5, "repetition"),
        ("same_language", "Le Blue Mug est une tasse très solide pour la famille.", "language"),
        ("no_invented_numbers", "Blue Mug 500", "invented_number"),
    ],
)
def test_rules_can_be_switched_off(key: str, text: str, rule: str) -> None:
    """One by one."""
    assert rule in broken(text, RulesConfig())
    assert rule not in broken(text, RulesConfig(**{key: False}))


@pytest.mark.parametrize(
    "text", ["a" * 20_000, "ab " * 10_000, "1," * 10_000, "<" * 20_000, "&" * 20_000, "\x00" * 99]
)
def test_hostile_texts(text: str) -> None:
    """No error, and no rule takes forever."""
    assert set(broken(text)) <= set(CHECKS)
