"""The README.md of what is published: what it is, how good, how to load, where it comes from."""

import re
import shlex
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from vlmtune.evaluation.metrics import meaning_of
from vlmtune.evaluation.results import BASE, TUNED

TEMPLATES = Path(__file__).resolve().parent / "templates"
MODEL_NAMES = {BASE: "base", TUNED: "fine-tuned"}
LORA_RANKS_OF_VLLM = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


class CardFacts(BaseModel):
    """What a model card states.

    Attributes:
        kind: an adapter, or a whole model with the adapter merged in.
        repo_id: where it is to be published; None if it stays in a folder.
        base_id: Hub id of the base model, or a local folder. Of an absolute path, here and in
            `catalog_source`, only the last name is shown.
        base_revision: commit on the Hub, or `sha256:` and the content hash of a local folder.
        license: the Hub's name of a licence, such as apache-2.0.
        catalog_source: data set id on the Hub, or a folder.
        catalog_digest: content hash or commit of the catalog.
        rows_train, rows_held_out: products learnt from, and kept aside.
        metrics: model name (`base`, `tuned`) -> metric -> value, as in `EvaluationReport`.
        config_yaml: the resolved configuration; its prompt and LoRA rank go into the examples.
        code_commit, lock_hash, mlflow_run_id, run_name: where it comes from.
        versions: package -> version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["adapter", "merged"]
    repo_id: str | None
    base_id: str
    base_revision: str
    license: str | None
    catalog_source: str
    catalog_digest: str
    rows_train: int
    rows_held_out: int
    metrics: dict[str, dict[str, float]] | None = None
    config_yaml: str
    code_commit: str | None
    lock_hash: str | None
    mlflow_run_id: str | None
    run_name: str
    versions: dict[str, str]

    @property
    def base_is_local(self) -> bool:
        """Whether the base model is a folder, which nobody can find on the Hub."""
        return self.base_revision.startswith("sha256:")


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
    environment.filters |= {"code": _code, "cell": _cell, "repr": repr, "shell": _shell_word}
    config = yaml.safe_load(facts.config_yaml) or {}
    return environment.get_template("model_card.md.j2").render(
        facts=facts,
        front_matter=yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True),
        base=_public_name(facts.base_id),
        repo=facts.repo_id or "path/to/this/folder",
        prompt=config.get("prompt") or {},
        max_lora_rank=_max_lora_rank(config),
        results=_results(facts),
        models=[MODEL_NAMES.get(model, model) for model in facts.metrics or {}],
        fence=_fence_around(facts.config_yaml),
        catalog=_public_name(facts.catalog_source),
    )


def _public_name(source: str) -> str:
    """A Hub id or relative folder as it is; of an absolute one only the name goes public."""
    folder = Path(source)
    return folder.name if folder.is_absolute() or source.startswith("~") else source


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


def _results(facts: CardFacts) -> list[dict[str, Any]]:
    """A line for each metric: its label, its meaning and a value for each model."""
    models = facts.metrics or {}
    names = dict.fromkeys(name for metrics in models.values() for name in metrics)
    lines = []
    for name in names:
        meaning = meaning_of(name)
        values = [
            meaning.show(metrics[name]) if name in metrics else "–" for metrics in models.values()
        ]
        lines.append({"label": meaning.label, "meaning": meaning.meaning, "values": values})
    return lines


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
