"""The model card: front matter the Hub can read, code that is Python, nothing to break out of."""

import ast
import re
import shlex
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from pydantic import ValidationError

from vlmtune.publishing.model_card import CardFacts, render_model_card

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOSTILE = "x`y```\n---\n# Heading\n```\n|a|<script>'\"$(rm)"
CONFIG = {
    "prompt": {"system": "You sell.", "template": 'Describe "{name}"\nin {category}'},
    "lora": {"r": 24},
}


def facts(**changes: Any) -> CardFacts:
    return CardFacts(
        **{
            "kind": "adapter",
            "repo_id": "shop/words",
            "base_id": "Qwen/Qwen2-VL-2B-Instruct",
            "base_revision": COMMIT,
            "license": "apache-2.0",
            "catalog_source": "shop/catalog",
            "catalog_digest": "sha256:feed",
            "rows_train": 1326,
            "rows_held_out": 58,
            "metrics": {
                "base": {"rouge_l": 0.21, "copied_name": 0.017},
                "tuned": {"rouge_l": 0.87, "copied_name": 0.966, "term_colours": 0.5},
            },
            "config_yaml": yaml.safe_dump(CONFIG),
            "code_commit": "c0ffee",
            "lock_hash": "10cc",
            "mlflow_run_id": "run-id",
            "run_name": "run-name",
            "versions": {"torch": "2.11.0"},
            **changes,
        }
    )


def front_matter(card: str) -> dict[str, Any]:
    """Read as the Hub's own client reads it."""
    return ModelCard(card, ignore_metadata_errors=False).data.to_dict()


def python_of(card: str) -> str:
    [code] = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    return str(code)


def assigned(code: str, name: str) -> Any:
    """The constant that a line of the code gives to a name."""
    return next(
        ast.literal_eval(node.value)
        for node in ast.parse(code).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )


def test_the_front_matter_of_an_adapter():
    assert front_matter(render_model_card(facts())) == {
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vlmtune", "qlora", "product-descriptions", "lora"],
        "base_model": "Qwen/Qwen2-VL-2B-Instruct",
        "base_model_relation": "adapter",
        "license": "apache-2.0",
    }


def test_the_front_matter_of_a_merged_model():
    data = front_matter(render_model_card(facts(kind="merged", license=None)))

    assert data["library_name"] == "transformers"
    assert data["base_model_relation"] == "finetune"
    assert "license" not in data


def test_a_local_base_is_named_in_the_text_only():
    card = render_model_card(facts(base_id="demo/model", base_revision="sha256:beef"))

    assert not {"base_model", "base_model_relation"} & front_matter(card).keys()
    assert "`demo/model`" in card and "`sha256:beef`" in card
    assert "--revision" not in card and "revision=" not in card


def test_the_machines_own_folders_stay_private():
    card = render_model_card(
        facts(base_id="/home/ann/models/tiny", base_revision="sha256:beef", catalog_source="~/shop")
    )

    assert "/home" not in card and "~" not in card
    assert "`tiny`" in card and "`shop`" in card


def test_base_and_tuned_stand_side_by_side():
    card = render_model_card(facts())

    assert "| measure | base | fine-tuned |\n| --- | ---: | ---: |" in card
    assert "| Shop's wording (ROUGE-L) | 0.21 | 0.87 |" in card
    assert "| Name copied | 1.7% | 96.6% |" in card
    assert "| Right “colours” term | – | 50.0% |" in card


def test_a_merged_model_says_that_it_was_not_scored_itself():
    note = "the merged bf16 model itself\nwas not scored"
    assert note in render_model_card(facts(kind="merged"))
    assert note not in render_model_card(facts(kind="adapter"))


def test_without_an_evaluation_it_says_so():
    assert "Not evaluated." in render_model_card(facts(metrics=None))


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_code_is_python_and_knows_the_prompt(kind: str):
    code = python_of(render_model_card(facts(kind=kind)))

    assert assigned(code, "prompt") == CONFIG["prompt"]["template"]
    assert "'You sell.'" in code and "'shop/words'" in code
    assert ("PeftModel" in code) == (kind == "adapter")
    assert (COMMIT in code) == (kind == "adapter")


def test_vllm_makes_room_for_the_adapters_rank():
    card = render_model_card(facts())
    [command] = re.findall(r"^vllm serve .*?(?=\n```)", card, re.DOTALL | re.MULTILINE)

    assert shlex.split(command.replace("\\\n", "")) == [
        *("vllm", "serve", "Qwen/Qwen2-VL-2B-Instruct", "--revision", COMMIT, "--enable-lora"),
        *("--max-lora-rank", "32", "--lora-modules", "shop=shop/words"),
    ]
    assert "\nvllm serve shop/words\n" in render_model_card(facts(kind="merged"))


def test_where_it_comes_from_is_told():
    card = render_model_card(facts(code_commit=None))

    for told in ("sha256:feed", "1,326", "58", "10cc", "run-id", "run-name", "2.11.0", COMMIT):
        assert told in card
    assert "| code |" not in card


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_hostile_texts_break_out_of_nothing(kind: str):
    config = yaml.safe_dump({**CONFIG, "prompt": {"system": HOSTILE, "template": HOSTILE}})
    card = render_model_card(
        facts(
            kind=kind,
            repo_id=HOSTILE,
            base_id=HOSTILE,
            license=HOSTILE,
            catalog_source=HOSTILE,
            run_name=HOSTILE,
            versions={HOSTILE: HOSTILE},
            config_yaml=config + "note: |\n  ```\n  # after the fence\n",
        )
    )
    data = front_matter(card)
    outside = card.partition("\n---\n")[2].partition("<details>")[0]

    assert data["base_model"] == data["license"] == HOSTILE
    assert assigned(python_of(card), "prompt") == HOSTILE
    assert "\n# Heading" not in outside and "\n---" not in outside
    assert outside.count("\n```") == 4  # two blocks of code, opened and closed
    assert "\n````yaml\n" in card  # a fence longer than any run of backticks inside
    for line in outside.splitlines():
        if line.startswith("| x"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3


def test_facts_are_strict():
    with pytest.raises(ValidationError):
        facts(kind="checkpoint")
    with pytest.raises(ValidationError):
        facts(colour="red")
