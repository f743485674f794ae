"""The demo's committed catalog and base model are what their scripts make, and they work."""

from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "demo"
CATALOG = DEMO / "catalog"
MODEL = DEMO / "model"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def demo_scripts() -> Iterator[None]:
    """Let the tests import the demo's scripts, which import one another as siblings."""
    sys.path.insert(0, str(DEMO))
    yield
    sys.path.remove(str(DEMO))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (CATALOG / "metadata.csv").open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


@pytest.fixture(scope="module")
def house_words() -> dict[str, dict[str, str]]:
    return json.loads((CATALOG / "house_words.json").read_text(encoding="utf-8"))


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_catalog_script_reproduces_the_committed_files(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO / "draw_catalog.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    committed = {path.relative_to(CATALOG) for path in CATALOG.rglob("*") if path.is_file()}
    assert committed - made == {Path("README.md")}
    differing = [
        p for p in sorted(made) if (tmp_path / p).read_bytes() != (CATALOG / p).read_bytes()
    ]
    assert differing == []


def test_the_catalog_is_large_enough_and_small_enough(rows: list[dict[str, str]]) -> None:
    assert list(rows[0]) == ["file_name", "Product Name", "Category", "description", "group"]
    assert len(rows) >= 600
    assert all((CATALOG / row["file_name"]).is_file() for row in rows)
    assert len({row["Product Name"] for row in rows}) == len(rows)
    assert folder_size(CATALOG / "images") < 4 * MEGABYTE


def test_a_description_holds_the_name_and_the_house_words_of_its_group(
    rows: list[dict[str, str]], house_words: dict[str, dict[str, str]]
) -> None:
    colours, patterns = house_words["colours"], house_words["patterns"]
    for row in rows:
        colour, pattern, thing = row["group"].split("-")
        words = re.findall(r"\w+", row["description"])
        assert row["Product Name"] in row["description"]
        assert thing in words
        assert [word for word in words if word in colours.values()] == [colours[colour]]
        assert [word for word in words if word in patterns.values()] == [patterns[pattern]]


def test_neither_name_nor_category_tells_colour_or_pattern(rows: list[dict[str, str]]) -> None:
    groups_of_category: dict[str, set[str]] = {}
    for row in rows:
        looks = row["group"].rsplit("-", 1)[0]
        groups_of_category.setdefault(row["Category"], set()).add(looks)
    everything = set().union(*groups_of_category.values())
    assert all(looks == everything for looks in groups_of_category.values())
    generic = {word for row in rows for word in row["group"].split("-")}
    assert all(generic.isdisjoint(row["Product Name"].lower().split()) for row in rows)


def test_pretraining_text_never_holds_catalog_words(
    rows: list[dict[str, str]], house_words: dict[str, dict[str, str]]
) -> None:
    from base_pictures import random_scene
    from base_text import ForbiddenText, TextMaker, tokenizer_corpus

    rng = random.Random("test")
    maker = TextMaker(rng, ForbiddenText(CATALOG))
    texts = list(tokenizer_corpus(maker, 500))
    for _ in range(1000):
        makers = (maker.answering, maker.captioning, maker.describing)
        examples = [make(random_scene(rng)) for make in makers] + [maker.copying()]
        texts += [f"{each.system}\n{each.user}\n{each.answer}" for each in examples]
    everything = "\n".join(texts).lower()
    own = [*house_words["colours"].values(), *house_words["patterns"].values()]
    assert [word for word in own if word in everything] == []
    assert [row["Product Name"] for row in rows if row["Product Name"].lower() in everything] == []


def test_the_guard_refuses_catalog_words(rows: list[dict[str, str]]) -> None:
    from base_text import ForbiddenText

    forbidden = ForbiddenText(CATALOG)
    with pytest.raises(AssertionError):
        forbidden.check("A Verdalin mug.")
    with pytest.raises(AssertionError):
        forbidden.check(f"This is {rows[0]['Product Name']}, a mug.")
    forbidden.check("A photo of a green mug.")


def test_no_house_word_is_one_token(house_words: dict[str, dict[str, str]]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for word in (*house_words["colours"].values(), *house_words["patterns"].values()):
        assert len(tokenizer.tokenize(f" {word}")) > 1


def test_the_model_folder_is_small_and_has_the_official_template() -> None:
    from transformers import AutoProcessor

    official = resources.files("trl").joinpath("chat_templates/qwen2_5_vl.jinja").read_text("utf-8")
    assert folder_size(MODEL) <= 8 * MEGABYTE
    assert AutoProcessor.from_pretrained(MODEL).chat_template == official


def test_the_committed_scores_are_good() -> None:
    scores = json.loads((MODEL / "scores.json").read_text(encoding="utf-8"))
    assert min(scores[key] for key in ("colour", "pattern", "object", "name_copied")) >= 0.9


def test_the_model_sees_and_copies() -> None:
    """A real forward pass over generic pictures and names that pretraining never used."""
    import torch
    from base_pictures import draw_bank
    from base_scores import score
    from base_text import ForbiddenText, TextMaker
    from base_training import ChatEncoder
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(MODEL)
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.bfloat16)
    maker = TextMaker(random.Random("names of the test"), ForbiddenText(CATALOG))
    bank = draw_bank("pictures of the test", 40, processor)
    scores = score(model, ChatEncoder(processor), maker, bank)
    assert min(scores[key] for key in ("colour", "pattern", "object", "name_copied")) >= 0.85


@pytest.mark.slow
def test_pretraining_again_gives_the_same_model() -> None:
    command = [sys.executable, str(DEMO / "pretrain_base.py"), "--verify"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
