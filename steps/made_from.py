"""What the adapter of a run is made from, as one fingerprint: two runs with the same one are the
same run."""

from pydantic_core import to_json

from steps.context import run_context
from vlmtune.catalog.catalog import Catalog
from vlmtune.config.tree import FinetuneConfig
from vlmtune.models.base_model import BaseModelRef
from vlmtune.revision import hash_text
from vlmtune.tracking.code_version import code_version


def training_inputs(config: FinetuneConfig, base: BaseModelRef, catalog_version: str) -> str:
    """Fingerprint of all that the adapter of a run is made from, the code included."""
    made_from = [
        *(config.seed, config.data, config.prompt, config.model, config.quantization),
        *(config.lora, config.training, config.packing, config.compute),
        *(base, catalog_version, code_version("steps.train_qlora")),
    ]
    return hash_text(to_json(made_from).decode())


def own_inputs(base: BaseModelRef, catalog: Catalog) -> str:
    """The same for the run that the calling step belongs to; a scheduled run learns only now
    which catalog it reads."""
    context = run_context()
    config = FinetuneConfig.model_validate(context.config)
    return context.inputs or training_inputs(config, base, catalog.version)
