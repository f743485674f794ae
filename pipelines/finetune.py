"""The fine-tuning pipeline: from a catalog to a model that writes its descriptions.

python run.py --pipeline finetune --config configs/demo.yaml
"""

from typing import Any

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


@pipeline(name="finetune", execution_mode=ExecutionMode.FAIL_FAST)
def finetune(
    config: FinetuneConfig,
    catalog_version: str | None,
    previous: str | None,
    base: BaseModelRef,
    tracker: str | None,
) -> None:
    """Catalog -> conversations -> QLoRA -> comparison -> merged model -> publication.

    Args:
        catalog_version: what the catalog's name stands for today; None to look when it runs.
        previous: id of the ledger whose split is carried on.
        base: what the base model's name stands for today.
        tracker: name of the stack's experiment tracker, if it has one.
    """
    tracked: dict[str, Any] = {"experiment_tracker": tracker} if tracker else {}
    catalog, examples = checked_rows(config, catalog_version, previous, base, tracked)
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
    evaluation, _ = evaluate_generations.with_options(**tracked)(
        catalog,
        examples,
        quantized_model,
        adapter,
        config.model,
        config.evaluation,
        config.generation,
        config.tracking.example_rows,
    )
    merged_model = merge_adapter(catalog, examples, adapter, config.model, config.merge)
    push_to_hub(catalog, adapter, merged_model, evaluation, config.hub)
