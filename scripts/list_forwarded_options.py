"""Write down the option names and types that vlmtune forwards to TRL, PEFT and transformers.

    python scripts/list_forwarded_options.py          # part of `make lock`

Importing these classes takes many seconds, checking a config must not: so their option names
and types are listed once, in `vlmtune/config/forwarded_options.json`, and a test holds the file
against the live classes.
"""

import dataclasses
import inspect
import json
import re
import types
import typing
from pathlib import Path

TARGET = Path(__file__).parent.parent / "vlmtune" / "config" / "forwarded_options.json"
SIMPLE_TYPES = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}


def simple_types(annotation: object) -> list[str]:
    """Reduce a type annotation to the names of the YAML types it accepts.

    Enums are written as their string value and configuration classes as a mapping.
    """
    if annotation in SIMPLE_TYPES:
        return [SIMPLE_TYPES[annotation]]
    if annotation is type(None):
        return ["null"]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return sorted({name for part in arguments for name in simple_types(part)})
    if origin is typing.Literal:
        return sorted({SIMPLE_TYPES[type(value)] for value in arguments})
    if origin in SIMPLE_TYPES:
        return [SIMPLE_TYPES[origin]]
    if inspect.isclass(annotation) and issubclass(annotation, str):
        return ["str"]
    return ["dict"]


def dataclass_options(config_class: type) -> dict[str, list[str]]:
    """Options of a dataclass such as SFTConfig or LoraConfig, from its resolved annotations."""
    namespace = {}  # inherited fields are annotated with names of the module that declares them
    for ancestor in reversed(config_class.__mro__):
        namespace.update(vars(inspect.getmodule(ancestor)))
    options = {}
    for field in dataclasses.fields(config_class):
        if not field.init:
            continue
        annotation = field.type
        if isinstance(annotation, str):
            annotation = eval(annotation, namespace)
        options[field.name] = sorted(simple_types(annotation))
    return options


def signature_options(config_class: type) -> dict[str, list[str]]:
    """Options of BitsAndBytesConfig: untyped, so the default's type is what is known."""
    options = {}
    for name, parameter in inspect.signature(config_class.__init__).parameters.items():
        if name == "self" or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        known = SIMPLE_TYPES.get(type(parameter.default))
        options[name] = [known] if known else ["any"]
    return options


def generation_options(config_class: type) -> dict[str, list[str]]:
    """Options of GenerationConfig, whose types stand only in its docstring."""
    pattern = re.compile(r"^\s+(\w+) \((.+?)\):", re.MULTILINE)
    documented = dict(pattern.findall(config_class.__doc__))
    words = {"int": "int", "float": "float", "bool": "bool", "str": "str"}
    options = {}
    for name in vars(config_class()):
        if name.startswith("_") or name == "transformers_version":
            continue
        text = documented.get(name, "").lower()
        found = {short for word, short in words.items() if re.search(rf"\b{word}", text)}
        found |= {"list"} if "list" in text else set()
        found |= {"dict"} if "dict" in text else set()
        options[name] = sorted(found | {"null"}) if found else ["any"]
    return options


def collect() -> dict[str, dict[str, list[str]]]:
    """All forwarded options: class path -> option -> accepted YAML types."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, GenerationConfig
    from trl import SFTConfig

    return {
        "trl.SFTConfig": dataclass_options(SFTConfig),
        "peft.LoraConfig": dataclass_options(LoraConfig),
        "transformers.BitsAndBytesConfig": signature_options(BitsAndBytesConfig),
        "transformers.GenerationConfig": generation_options(GenerationConfig),
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(collect(), indent=1, sort_keys=True) + "\n")
    print(f"wrote {TARGET}")
