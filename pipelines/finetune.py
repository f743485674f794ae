"""The fine-tuning pipeline: from a catalog to a model that writes its descriptions.

python run.py --pipeline finetune --config configs/demo.yaml
"""

from typing import Any, Literal

from zenml import pipeline
from zenml.enums import ExecutionMode

from pipelines.rows import checked_rows
from steps.evaluate_generations import evaluate_generations
from steps.load_quantized_model import load_quantized_model
from steps.merge_adapter import merge_adapter
from steps.push_to_hub import push_to_hub
from steps.train_qlora import train_qlora
from vlmtune.config.tree import FinetuneConfig
from vlmtune.models.base_model import BaseModelRef
from vlmtune.tracking.registry import LATEST, ChampionRef


@pipeline(name="finetune", execution_mode=ExecutionMode.FAIL_FAST)
def finetune(
    config: FinetuneConfig,
    catalog_version: str | None,
    previous: str | None,
    base: BaseModelRef,
    champion: ChampionRef | Literal["latest"] | None,
    registered: bool,
    tracker: str | None,
) -> None:
    """Catalog -> conversations -> QLoRA -> comparison and gate -> merged model -> publication.

    Args:
        catalog_version: what the catalog's name stands for today; None to look when it runs.
        previous: id of the ledger whose split is carried on.
        base: what the base model's name stands for today.
        champion: the version that the new model has to beat, `latest` to look it up when the run
            comes to it; None if there is none.
        tracker: name of the stack's experiment tracker, if it has one.
    """
    tracked: dict[str, Any] = {"experiment_tracker": tracker} if tracker else {}
    catalog, ledger, examples = checked_rows(config, catalog_version, previous, base, tracked)
    quantized_model = load_quantized_model(config.model, base, config.quantization)
    adapter = train_qlora.with_options(**tracked)(
        catalog,
        examples,
        quantized_model,
        config.seed,
        config.model,
        config.lora,
        config.training,
        config.packing,
        config.compute,
        config.vision_cache.enabled,
    )
    asked = (config.model, config.evaluation, config.generation, config.gate)
    looked_up = {"enable_cache": False} if champion == LATEST else {}
    evaluation, decision, _ = evaluate_generations.with_options(**tracked, **looked_up)(
        catalog, examples, quantized_model, adapter, *asked, champion, config.tracking.example_rows
    )
    merged_model, merged_evaluation, merged_decision, _ = merge_adapter.with_options(**tracked)(
        catalog, examples, adapter, evaluation, decision, *asked, config.merge
    )
    settled = {} if registered else {"enable_cache": False}
    push_to_hub.with_options(**tracked, **settled, secrets=config.hub.secrets)(
        catalog,
        ledger,
        adapter,
        merged_model,
        merged_evaluation,
        merged_decision,
        config.hub,
        config.model,
    )
