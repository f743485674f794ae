"""How a model is asked: its own options of generation with those of the config in their place."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtune.models.merge_record import MergeCheck

if TYPE_CHECKING:
    from transformers import GenerationConfig

# Read by sampling only. Many base models are published with some, and without `do_sample: false`
# whoever loads the model would sample with them.
SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff"),
)


def resolve_generation(model: Any, options: dict[str, Any]) -> "GenerationConfig":
    """The options that a model is asked with, by the gate and by whoever serves it.

    Args:
        options: of transformers.GenerationConfig; what is not said stands in the model's own.
    """
    from transformers import GenerationConfig

    resolved = {**model.generation_config.to_diff_dict(), **options}
    if not resolved.get("do_sample"):
        resolved = {name: value for name, value in resolved.items() if name not in SAMPLING}
    return GenerationConfig(**resolved)


def write_generation(model: Any, options: dict[str, Any], folder: Path) -> None:
    """Put the resolved options beside a saved model, in the place of the base's own."""
    from transformers.utils import GENERATION_CONFIG_NAME

    resolve_generation(model, options).to_json_file(folder / GENERATION_CONFIG_NAME)


def check_generation(model: Any, options: dict[str, Any]) -> MergeCheck:
    """A merged model must say by itself what it was asked with.

    Args:
        model: read back from its files.
        options: as for `resolve_generation`.
    """
    stored = model.generation_config.to_diff_dict()
    wanted = resolve_generation(model, options).to_diff_dict()
    differing = [
        name
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
    return MergeCheck(
        name="generation config",
        wanted="what the gate asks with",
        found=f"other values of {', '.join(differing)}" if differing else "the same",
        met=not differing,
    )
