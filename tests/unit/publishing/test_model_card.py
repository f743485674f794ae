"""The model card: front matter the Hub can read, code that is Python, nothing to break out of."""

import ast
import json
import re
import shlex
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from pydantic import ValidationError

from vlmtune.evaluation.gate import GateCheck, PromotionDecision
from vlmtune.evaluation.intervals import Interval
from vlmtune.publishing.facts import CardFacts
from vlmtune.publishing.model_card import render_model_card
from vlmtune.publishing.receipt import make_receipt
from vlmtune.revision import digest_of, hash_text

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOSTILE = "x`y```\n---\n# Heading\n```\n|a|<script>'\"$(rm)"
DECISION = PromotionDecision(
    subject="tuned",
    verdict="kept_back",
    checks=[
        GateCheck(name="base", wanted="better", found="+0.1", met=True, otherwise="kept_back"),
        GateCheck(name="rules", wanted="10%", found="a|b", met=False, otherwise="kept_back"),
        GateCheck(name="picture", wanted="seen", found="–", met=None, otherwise="failed"),
    ],
)
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


def test_the_config_in_the_card_names_no_folder_of_the_machine():
    config = CONFIG | {
        "data": {"source": "/home/ann/shop", "sources": [{"source": "~/more"}]},
        "model": {"id": "/home/ann/models/tiny"},
        "output": {"runs_dir": "runs", "work_dir": "/scratch/ann/work"},
        "prompt": {"template": "/describe {name}"},
    }
    known = facts(config_yaml=yaml.safe_dump(config, sort_keys=False))
    card = render_model_card(known)
    [shown] = re.findall(r"^```yaml\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)

    assert not re.search("ann|~|scratch", card)
    assert yaml.safe_load(shown) == CONFIG | {
        "data": {"source": "shop", "sources": [{"source": "more"}]},
        "model": {"id": "tiny"},
        "output": {"runs_dir": "runs", "work_dir": "work"},
        "prompt": {"template": "/describe {name}"},
    }
    assert hash_text(shown) == make_receipt(known).config_digest


@pytest.mark.parametrize(
    ("kind", "packages"),
    [
        ("adapter", "torch==2.11.0 transformers==5.1 accelerate==1.2 peft==0.19"),
        ("merged", "torch==2.11.0 transformers==5.1 accelerate==1.2"),
    ],
)
def test_loading_begins_with_the_versions_needed(kind: str, packages: str):
    versions = {"torch": "2.11.0+cpu", "transformers": "5.1", "accelerate": "1.2", "peft": "0.19"}
    card = render_model_card(facts(kind=kind, versions=versions | {"zenml": "0.9"}))

    [section] = re.findall(r"^## How to load it\n(.*?)^## ", card, re.DOTALL | re.MULTILINE)
    first = section.partition("```bash\n")[2].partition("\n```")[0]
    assert first == f"pip install pillow {packages}"
    assert section.index(first) < section.index("```python")
    assert "pip install" not in render_model_card(facts(kind=kind, versions={}))


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


def test_a_merged_model_that_was_scored_has_a_column():
    metrics = {"base": {"rouge_l": 0.2}, "tuned": {"rouge_l": 0.9}, "merged": {"rouge_l": 0.8}}
    card = render_model_card(facts(kind="merged", metrics=metrics))

    assert "was not scored" not in " ".join(card.split())
    assert "| measure | base | fine-tuned | merged |" in card
    assert "| Shop's wording (ROUGE-L) | 0.20 | 0.90 | 0.80 |" in card


def test_intervals_stand_behind_the_figures():
    known = Interval(mean=0.87, low=0.81, high=0.92, groups=29, rows=58)
    too_few = Interval(mean=0.966, low=None, high=None, groups=1, rows=1)
    card = render_model_card(facts(intervals={"tuned": {"rouge_l": known, "copied_name": too_few}}))

    assert "| Shop's wording (ROUGE-L) | 0.21 | 0.87 (0.81 to 0.92) |" in card
    assert "| Name copied | 1.7% | 96.6% |" in card
    assert "two-sided 95 % confidence interval over 29 groups (58 rows)" in card
    assert "one-sided" in card
    assert "confidence interval" not in render_model_card(facts())


def test_the_gate_tells_what_it_asked_and_found():
    card = render_model_card(facts(decision=DECISION))

    assert "Verdict: **kept back**." in card
    assert "| base | better | +0.1 | yes |\n" in card
    assert "| rules | 10% | a\\|b | no |\n" in card
    assert "| picture | seen | – | not measured |\n" in card
    assert "## Gate" not in render_model_card(facts())


def test_every_row_is_accounted_for():
    counts = {"rows_read": 1400, "kept": 1377, "repaired": 4, "quarantined": 16, "duplicate": 3}
    card = render_model_card(facts(row_counts=counts))

    for line in ("rows read | 1,400", "kept as they were | 1,377", "repaired | 4"):
        assert f"| {line} |\n" in card
    assert "| quarantined, and not learnt from | 16 |" in card
    assert "| exact copies of other rows, counted once | 3 |" in card
    assert "rows read" not in render_model_card(facts())


def test_licences_are_stated_or_said_not_to_be():
    card = render_model_card(facts(base_license="apache-2.0", data_license="CC|BY"))
    silent = render_model_card(facts(license=None))

    assert "| this model | apache-2.0 |\n| base model | apache-2.0 |\n" in card
    assert "| catalog | CC\\|BY |\n" in card
    assert silent.count("| not stated |") == 3


def test_the_receipt_holds_the_hashes():
    files = {"adapter_model.safetensors": "aa", "adapter_config.json": "bb"}
    known = facts(adapter_hash="ada", decision=DECISION, files=files, catalog_source="/data/shop")
    receipt = make_receipt(known).to_json()
    [shown] = re.findall(r"^```json\n(.*?)^```$", render_model_card(known), re.DOTALL | re.M)

    assert shown == receipt
    assert json.loads(receipt) == {
        "kind": "adapter",
        "base": "Qwen/Qwen2-VL-2B-Instruct",
        "base_revision": COMMIT,
        "adapter_hash": "ada",
        "catalog": "shop",
        "catalog_digest": "sha256:feed",
        "code_commit": "c0ffee",
        "lock_hash": "10cc",
        "config_digest": hash_text(known.public_config),
        "verdict": "kept_back",
        "files": 2,
        "files_digest": digest_of(files),
    }


def test_a_receipt_says_what_is_not_known():
    receipt = make_receipt(facts())

    assert receipt.adapter_hash is receipt.verdict is receipt.files is receipt.files_digest is None


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


@pytest.mark.parametrize(("kind", "model"), [("adapter", "shop"), ("merged", "shop/words")])
@pytest.mark.parametrize("template", [CONFIG["prompt"]["template"], HOSTILE])
def test_the_server_is_asked_with_the_prompt(kind: str, model: str, template: str):
    config = yaml.safe_dump({**CONFIG, "prompt": {"system": "You sell.", "template": template}})
    card = render_model_card(facts(kind=kind, config_yaml=config))
    [command] = re.findall(r"^curl .*?(?=\n```)", card, re.DOTALL | re.MULTILINE)
    words = shlex.split(command.replace("\\\n", ""))
    body = json.loads(words[words.index("-d") + 1])
    system, user = body["messages"]

    assert words[1].endswith("/v1/chat/completions") and len(words) == 6
    assert body["model"] == model and system == {"role": "system", "content": "You sell."}
    assert user["content"][0]["type"] == "image_url"
    assert user["content"][1] == {"type": "text", "text": template}


def test_where_it_comes_from_is_told():
    card = render_model_card(facts(code_commit=None))

    for told in ("sha256:feed", "1,326", "58", "10cc", "run-id", "run-name", "2.11.0", COMMIT):
        assert told in card
    assert "| code |" not in card


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_hostile_texts_break_out_of_nothing(kind: str):
    config = yaml.safe_dump({**CONFIG, "prompt": {"system": HOSTILE, "template": HOSTILE}})
    check = GateCheck(name=HOSTILE, wanted=HOSTILE, found=HOSTILE, met=None, otherwise="failed")
    card = render_model_card(
        facts(
            kind=kind,
            repo_id=HOSTILE,
            base_id=HOSTILE,
            license=HOSTILE,
            base_license=HOSTILE,
            data_license=HOSTILE,
            catalog_source=HOSTILE,
            decision=PromotionDecision(subject="tuned", verdict="failed", checks=[check]),
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
    assert outside.count("\n```") == 6  # three blocks of code, opened and closed
    assert "\n````yaml\n" in card  # a fence longer than any run of backticks inside
    for line in outside.splitlines():
        if line.startswith("| x"):
            bars = 5 if line.endswith("| not measured |") else 3
            assert len(re.findall(r"(?<!\\)\|", line)) == bars


def test_facts_are_strict():
    with pytest.raises(ValidationError):
        facts(kind="checkpoint")
    with pytest.raises(ValidationError):
        facts(colour="red")
