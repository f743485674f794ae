"""What is known of a model that goes out, and may be told: card and receipt are made of it."""

from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.evaluation.intervals import Interval
from vlmtune.revision import public_name


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
        config_yaml: the resolved configuration; its prompt and LoRA rank go into the examples. Of
            absolute paths in it, only the last names are shown.
        code_commit, lock_hash, mlflow_run_id, run_name: where it comes from.
        versions: package -> version.
        intervals: model name -> metric -> its 95 % interval, as in `EvaluationReport`.
        decision: what the gate said of this very model.
        row_counts: `rows_read` and one count a decision, as in `RowLedger.counts`.
        base_license, data_license: licences of what it was made of.
        adapter_hash: content hash of the adapter, or of the one that was merged.
        files: name -> SHA-256 of what was tested.
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
    intervals: dict[str, dict[str, Interval]] = {}
    decision: PromotionDecision | None = None
    row_counts: dict[str, int] = {}
    base_license: str | None = None
    data_license: str | None = None
    adapter_hash: str | None = None
    files: dict[str, str] = {}

    @property
    def base_is_local(self) -> bool:
        """Whether the base model is a folder, which nobody can find on the Hub."""
        return self.base_revision.startswith("sha256:")

    @property
    def base_name(self) -> str:
        """The base model's name as it may be told to anybody."""
        return public_name(self.base_id)

    @property
    def catalog_name(self) -> str:
        """The catalog's name as it may be told to anybody."""
        return public_name(self.catalog_source)

    @property
    def public_config(self) -> str:
        """The resolved configuration as it may be told to anybody."""
        config = yaml.safe_load(self.config_yaml) or {}
        told = {
            section: values if section == "prompt" else _without_paths(values)
            for section, values in config.items()
        }
        return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)


def _without_paths(value: Any) -> Any:
    """A value of a config, with the last names in the place of absolute paths."""
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return public_name(value) if isinstance(value, str) and "\n" not in value else value
