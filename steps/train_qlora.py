"""Step 4: train the LoRA adapter on the quantised base."""

from typing import Annotated, Any

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers.adapter import AdapterMaterializer
from steps.context import begin_tracking, run_context, run_name
from vlmtune.catalog.catalog import Catalog, hash_rows, iterate_batches
from vlmtune.config.model import ModelConfig
from vlmtune.config.training import ComputeConfig, PackingConfig, VisionCacheConfig
from vlmtune.models.adapter import Adapter
from vlmtune.models.quantized import QuantizedModel, pick_device
from vlmtune.prompting import Examples, with_pictures
from vlmtune.sampling import draw_rows
from vlmtune.tracking import experiment
from vlmtune.tracking.code_version import code_version

HELD_OUT_LOSS_ROWS = 200  # enough for a loss curve; all held-out rows are scored after training


def train_qlora_code() -> str:
    """Part of the cache key: the code and libraries that train."""
    return code_version(__name__)


@step(
    output_materializers=AdapterMaterializer,
    cache_policy=CachePolicy(cache_func=train_qlora_code),
)
def train_qlora(
    catalog: Catalog,
    examples: Examples,
    quantized_model: QuantizedModel,
    seed: int,
    model: ModelConfig,
    lora: dict[str, Any],
    training: dict[str, Any],
    packing: PackingConfig,
    compute: ComputeConfig,
    cache_features: bool,
) -> Annotated[Adapter, "adapter"]:
    """Train, going on from the last checkpoint of an interrupted run of the very same training.

    Args:
        lora, training: options of peft.LoraConfig and trl.SFTConfig.
        cache_features: whether picture features come from `vision_cache`. Its folder and size
            are taken from the run: they do not change the adapter.
    """
    from vlmtune.training.checkpoints import training_fingerprint
    from vlmtune.training.plan import TrainingPlan
    from vlmtune.training.trainer import train_adapter

    mlflow_run_id = begin_tracking(catalog)
    fingerprint = training_fingerprint(
        {
            "rows": hash_rows(iterate_batches(examples.train)),
            "held_out": hash_rows(iterate_batches(examples.held_out)),
            "pictures": hash_rows(iterate_batches(catalog.rows)),
            "base": quantized_model.base,
            "quantization": quantized_model.quantization,
            "model": model,
            "options": (seed, lora, training, packing, compute, cache_features),
            "code": train_qlora_code(),
        }
    )
    context = run_context()
    work_dir = context.work_dir
    cache = VisionCacheConfig.model_validate(context.config["vision_cache"])
    plan = TrainingPlan(
        seed=seed,
        lora=lora,
        training=training,
        device=pick_device(model.device),
        folder=work_dir / "checkpoints" / fingerprint,
        tensorboard=work_dir / "tensorboard" / run_name(),
        run=run_name(),
        packing=packing,
        features=(cache.folder or work_dir / "vision_features") if cache_features else None,
        features_gib=cache.max_gib,
        quantization=quantized_model.quantization,
        fp8=compute.frozen_weights == "fp8",
    )
    held_out = draw_rows(examples.held_out, HELD_OUT_LOSS_ROWS)
    base_model, processor = quantized_model.load(model)
    adapter = train_adapter(
        base_model,
        processor,
        quantized_model.base,
        with_pictures(examples.train, catalog),
        with_pictures(held_out, catalog),
        plan,
        experiment.log_training_metrics,
    )
    return adapter.in_run(mlflow_run_id)
