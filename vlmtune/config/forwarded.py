"""Options that are handed on to TRL, PEFT and transformers under their own names.

vlmtune redeclares none of them. Their names and YAML types are listed in
`forwarded_options.json`, written by `make lock` from the live classes.
"""

import difflib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # text for YAML 1.1, unless it has a dot

# Options that may also be `auto`: vlmtune works them out and writes them into the resolved config.
WORKED_OUT = ("gradient_checkpointing",)

_TYPES: dict[str, Any] = {
    "any": Any,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list": list,
    "dict": dict,
    "null": None,
}


@cache
def known_options(target: str) -> dict[str, list[str]]:
    """Option names of a forwarded class such as `"trl.SFTConfig"`, with the types each takes."""
    return json.loads((Path(__file__).parent / "forwarded_options.json").read_text())[target]


def _with_numbers(value: Any) -> Any:
    """Inside lists and mappings, whose types nobody declares, `2e-4` is a number too."""
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_number(item) for item in value]
    return value


def _number(value: Any) -> Any:
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    return _with_numbers(value)


def _check_option(target: str, name: str, value: Any, owned: dict[str, str]) -> Any:
    """Return the value in the type that the target's option takes, or say what is wrong."""
    if name in owned:
        raise PydanticCustomError("owned_option", f"{name}: {owned[name]}")
    if value == "auto" and name in WORKED_OUT:
        return value
    options = known_options(target)
    if name not in options:
        near = difflib.get_close_matches(name, options, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise PydanticCustomError("unknown_option", f"{name}: {target} has no such option{hint}")
    value = _with_numbers(value)
    if "float" in options[name] and type(value) is int:
        return value  # TRL tells a count (500) from a share (0.5) by the type
    union: Any = _TYPES[options[name][0]]
    for type_name in options[name][1:]:
        union = union | _TYPES[type_name]
    try:
        return TypeAdapter(union).validate_python(value)
    except ValidationError:
        wanted = " or ".join(options[name])
        raise PydanticCustomError(
            "wrong_type", f"{name}: {target} takes {wanted}, got {value!r}"
        ) from None


def forwarded_to(target: str, owned: dict[str, str] | None = None) -> Callable[[Any], Any]:
    """Validator for a mapping that is forwarded to `target`.

    Args:
        target: a key of `forwarded_options.json`.
        owned: options that vlmtune sets itself -> where to set them instead.
    """

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise PydanticCustomError("wrong_type", f"a mapping of {target} options is expected")
        refused = owned or {}
        return {name: _check_option(target, name, item, refused) for name, item in value.items()}

    return check


BitsAndBytesOptions = Annotated[
    dict[str, Any], BeforeValidator(forwarded_to("transformers.BitsAndBytesConfig"))
]
LoraOptions = Annotated[
    dict[str, Any],
    BeforeValidator(
        forwarded_to(
            "peft.LoraConfig",
            {
                "base_model_name_or_path": "set model.id instead",
                "revision": "set model.revision instead",
                "inference_mode": "vlmtune sets it",
            },
        )
    ),
]
GenerationOptions = Annotated[
    dict[str, Any], BeforeValidator(forwarded_to("transformers.GenerationConfig"))
]

_NO_PUSH_WHILE_TRAINING = "nothing is pushed while training; set hub.repo_id instead"
_NOT_FOR_PICTURES = "TRL cannot pack picture rows; set packing.packed instead"
SFT_OWNED = {
    "output_dir": "set output.work_dir instead",
    "seed": "set the top-level seed instead",
    "data_seed": "set the top-level seed instead",
    "report_to": "metrics go to MLflow and TensorBoard",
    "remove_unused_columns": "vlmtune hands over just the columns that are used",
    "use_cpu": "set model.device instead",
    "trust_remote_code": "set model.trust_remote_code instead",
    "model_init_kwargs": "set the model section instead",
    "resume_from_checkpoint": "a run of the same config resumes by itself",
    "packing": _NOT_FOR_PICTURES,
    "padding_free": _NOT_FOR_PICTURES,
    "eval_packing": _NOT_FOR_PICTURES,
    "assistant_only_loss": "rows are prompt and completion; set completion_only_loss instead",
    "max_length": "cutting a row would cut through its picture tokens; cap model.max_pixels",
    "push_to_hub": _NO_PUSH_WHILE_TRAINING,
    "hub_model_id": _NO_PUSH_WHILE_TRAINING,
    "hub_strategy": _NO_PUSH_WHILE_TRAINING,
    "hub_token": "a secret does not belong into a config; set HF_TOKEN in the environment",
    "hub_private_repo": "set hub.private instead",
    "hub_always_push": _NO_PUSH_WHILE_TRAINING,
    "hub_revision": _NO_PUSH_WHILE_TRAINING,
}
SFTOptions = Annotated[dict[str, Any], BeforeValidator(forwarded_to("trl.SFTConfig", SFT_OWNED))]
