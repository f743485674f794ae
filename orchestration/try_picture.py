"""One picture, described by the base, the adapter and the merged model, side by side."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.catalog.pictures import BrokenPicture, decode_picture
from vlmtune.config.data import DESCRIPTION, PICTURE
from vlmtune.config.loading import load_config
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError
from vlmtune.prompting import build_prompt

RUN_FILES = ("config.resolved.yaml", "summary.json")


@dataclass(frozen=True)
class TriedRun:
    """A finished run and the artifacts its models are loaded from."""

    config: FinetuneConfig
    artifacts: dict[str, str]
    summary: dict[str, Any]


def open_run(folder: Path) -> TriedRun:
    """Read a run's config and artifact ids.

    Raises:
        UserError: no such run, or it did not come as far as an adapter.
    """
    if not all((folder / name).is_file() for name in RUN_FILES):
        raise UserError(f"there is no finished run at {folder}.", "Run the pipeline first.")
    summary = json.loads((folder / "summary.json").read_text())
    artifacts = {name: entry["id"] for name, entry in summary["artifacts"].items()}
    if "adapter" not in artifacts:
        raise UserError(f"the run at {folder} has no adapter.", "Let a run finish first.")
    return TriedRun(load_config(folder / "config.resolved.yaml"), artifacts, summary)


def read_fields(config: FinetuneConfig, given: dict[str, str]) -> dict[str, str]:
    """The fields of the prompt's template.

    Raises:
        UserError: the template names a field that was not given.
    """
    wanted = config.prompt.fields
    missing = [field for field in wanted if field not in given]
    if missing:
        raise UserError(
            f"this run's prompt needs the field {missing[0]!r}.",
            f"Give it with --{missing[0]} TEXT"
            if missing[0] in ("name", "category")
            else f"Give it with --field {missing[0]}=TEXT",
        )
    return {key: value for key, value in given.items() if key not in (PICTURE, DESCRIPTION)}


def describe_picture(tried: TriedRun, picture: Path, fields: dict[str, str]) -> dict[str, str]:
    """Model name -> description: base and adapter in 4 bits, merged model in bf16.

    Raises:
        UserError: the picture or a model cannot be read.
    """
    from steps.artifacts import find_artifact, load_artifact
    from vlmtune.models.adapter import attach_adapter, without_adapter
    from vlmtune.models.processor import load_processor
    from vlmtune.models.quantized import load_model

    config = tried.config
    try:
        image = decode_picture(picture.read_bytes(), background=config.data.background)
    except (OSError, BrokenPicture) as error:
        raise UserError(f"cannot read the picture {picture}: {error}.") from None
    prompt = build_prompt(config.prompt, read_fields(config, fields))

    def artifact(name: str) -> Any:
        return load_artifact(find_artifact(tried.artifacts[name]))

    model, processor = artifact("quantized_model").load(config.model)
    tuned = attach_adapter(model, artifact("adapter"))
    with without_adapter(tuned) as base:
        texts = {"base": _describe(base, processor, prompt, image, config)}
    texts["adapter"] = _describe(tuned, processor, prompt, image, config)
    merged = artifact("merged_model")
    if merged.folder is None:
        texts["merged"] = f"(no merged model: {merged.record.reason})"
        return texts
    folder = str(merged.folder)
    model = load_model(folder, None, config.model, quantization={})
    processor = load_processor(folder, None, config.model)
    texts["merged"] = _describe(model, processor, prompt, image, config)
    return texts


def _describe(model: Any, processor: Any, prompt: Any, image: Any, config: FinetuneConfig) -> str:
    from vlmtune.evaluation.generation import describe_batch

    row = {"prompt": [prompt], "images": [[image]]}
    return describe_batch(model, processor, row, config.generation)[0]
