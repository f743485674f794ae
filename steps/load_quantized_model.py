"""Step 3: the base model in 4 bits, made once per base and config."""

from typing import Annotated, Any

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers.quantized_model import QuantizedModelMaterializer
from vlmtune.config.model import ModelConfig
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.quantized import QuantizedModel
from vlmtune.tracking.code_version import code_version


def load_quantized_model_code() -> str:
    """Part of the cache key: the code and libraries that quantise."""
    return code_version(__name__)


@step(
    output_materializers=QuantizedModelMaterializer,
    cache_policy=CachePolicy(cache_func=load_quantized_model_code),
)
def load_quantized_model(
    model: ModelConfig, base: BaseModelRef, quantization: dict[str, Any]
) -> Annotated[QuantizedModel, "quantized_model"]:
    """Quantise the base model at its exact revision; a retrain on new rows reuses it.

    Args:
        base: the revision that `model` stands for, resolved before the run.
        quantization: options of transformers.BitsAndBytesConfig.
    """
    from vlmtune.models.quantized import quantize

    return quantize(base, model, quantization)
