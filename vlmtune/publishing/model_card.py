"""The README.md of what is published: what it is, how good, how to load, where it comes from."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from vlmtune.evaluation.intervals import Interval
from vlmtune.evaluation.metrics import MetricMeaning, meaning_of
from vlmtune.evaluation.results import BASE, CHAMPION, MERGED, TUNED
from vlmtune.publishing.facts import CardFacts
from vlmtune.publishing.receipt import make_receipt

TEMPLATES = Path(__file__).resolve().parent / "templates"
MODEL_NAMES = {BASE: "base", TUNED: "fine-tuned", CHAMPION: "champion", MERGED: "merged"}
DEFAULT_PROMPT = "Describe this product."
ROW_COUNTS = {
    "rows_read": "rows read",
    "kept": "kept as they were",
    "repaired": "repaired",
    "quarantined": "quarantined, and not learnt from",
    "duplicate": "exact copies of other rows, counted once",
}
LORA_RANKS_OF_VLLM = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


def render_model_card(facts: CardFacts) -> str:
    """Write a model card in Markdown, with the front matter that the Hub validates.

    A local base model is named in the text only: the Hub refuses a `base_model` it does not have.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # it is Markdown: `code`, `cell`, `repr` and `fence` guard it instead
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": _code,
        "cell": _cell,
        "repr": repr,
        "shell": _shell_word,
        "fence": _fence_around,
    }
    config = yaml.safe_load(facts.config_yaml) or {}
    repo = facts.repo_id or "path/to/this/folder"
    prompt = config.get("prompt") or {}
    return environment.get_template("model_card.md.j2").render(
        facts=facts,
        front_matter=yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True),
        base=facts.base_name,
        repo=repo,
        requirements=_requirements(facts),
        prompt=prompt,
        default_prompt=DEFAULT_PROMPT,
        max_lora_rank=_max_lora_rank(config),
        new_tokens=_new_tokens(config),
        results=_results(facts),
        sample=next((each for found in facts.intervals.values() for each in found.values()), None),
        models=[MODEL_NAMES.get(model, model) for model in facts.metrics or {}],
        catalog=facts.catalog_name,
        was_scored=facts.kind == "adapter" or MERGED in (facts.metrics or {}),
        row_counts={
            label: facts.row_counts[name]
            for name, label in ROW_COUNTS.items()
            if name in facts.row_counts
        },
        request=_request("shop" if facts.kind == "adapter" else repo, config),
        receipt=make_receipt(facts).to_json(),
    )


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    """Keys of https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    is_adapter = facts.kind == "adapter"
    entries: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vlmtune", "qlora", "product-descriptions", *(["lora"] if is_adapter else [])],
    }
    if not facts.base_is_local:
        entries["base_model"] = facts.base_id
        entries["base_model_relation"] = "adapter" if is_adapter else "finetune"
    if facts.license:
        entries["license"] = facts.license
    return entries


def _requirements(facts: CardFacts) -> list[str]:
    """What the example of loading needs, as pip is told it."""
    packages = ["torch", "transformers", "accelerate"]
    if facts.kind == "adapter":
        packages.append("peft")
    return [
        # A local version, such as +cpu, is not on the package index.
        f"{package}=={facts.versions[package].partition('+')[0]}"
        for package in packages
        if package in facts.versions
    ]


def _results(facts: CardFacts) -> list[dict[str, Any]]:
    """A line for each metric: its label, its meaning and a value for each model."""
    models = facts.metrics or {}
    names = dict.fromkeys(name for metrics in models.values() for name in metrics)
    lines = []
    for name in names:
        meaning = meaning_of(name)
        values = [
            _value(meaning, metrics.get(name), facts.intervals.get(model, {}).get(name))
            for model, metrics in models.items()
        ]
        lines.append({"label": meaning.label, "meaning": meaning.meaning, "values": values})
    return lines


def _value(meaning: MetricMeaning, value: float | None, interval: Interval | None) -> str:
    """A figure, with its interval in brackets if there is one."""
    if value is None:
        return "–"
    if interval is None or interval.low is None or interval.high is None:
        return meaning.show(value)
    return f"{meaning.show(value)} ({meaning.show(interval.low)} to {meaning.show(interval.high)})"


def _new_tokens(config: dict[str, Any]) -> int:
    """How long an answer may be, as in the evaluation."""
    return (config.get("generation") or {}).get("max_new_tokens", 256)


def _request(model: str, config: dict[str, Any]) -> str:
    """A question to the server as JSON, quoted for a shell."""
    prompt = config.get("prompt") or {}
    picture = {"type": "image_url", "image_url": {"url": "https://shop.example/product.jpg"}}
    text = {"type": "text", "text": prompt.get("template") or DEFAULT_PROMPT}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [picture, text]}]
    if prompt.get("system"):
        messages.insert(0, {"role": "system", "content": prompt["system"]})
    body: dict[str, Any] = {"model": model, "max_tokens": _new_tokens(config), "temperature": 0}
    body["messages"] = messages
    return shlex.quote(json.dumps(body, indent=2, ensure_ascii=False))


def _max_lora_rank(config: dict[str, Any]) -> int:
    """The least rank that vLLM can be told to make room for; its own default is 16."""
    rank = (config.get("lora") or {}).get("r", 16)
    return next((allowed for allowed in LORA_RANKS_OF_VLLM if allowed >= rank), rank)


def _code(text: str) -> str:
    """Inline code on one line, which no text can break out of, in a table or elsewhere."""
    line = " ".join(text.split()).replace("|", r"\|")
    ticks = "`" * (_longest_run_of_backticks(line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def _cell(text: str) -> str:
    """Plain text for a table's cell, without any mark-up."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def _shell_word(text: str) -> str:
    """One word of a command line; on one line, so that it cannot close a code block."""
    return shlex.quote(" ".join(text.split()))


def _fence_around(text: str) -> str:
    """A fence that no line of the text closes."""
    return "`" * max(3, _longest_run_of_backticks(text) + 1)


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
