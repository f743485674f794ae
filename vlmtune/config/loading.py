"""From a YAML file and `--set key=value` to a checked configuration, or one clear error."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import ConfigError

KeyPath = tuple[str, ...]
DESCRIBING = ("data", "describe", "output")  # what the config of a new catalog decides


def load_config(path: Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read, override and check a configuration.

    Args:
        path: the YAML file.
        overrides: `key=value` strings; the key is dotted (`training.learning_rate=1e-4`), the
            value is read as YAML.

    Raises:
        ConfigError: names the file, line and key of each problem, and the nearest valid key.
    """
    values, sources = _read_yaml(path)
    sources |= _apply_overrides(values, overrides)
    return _checked(values, sources, path)


def load_describing_config(
    path: Path, trained: FinetuneConfig, overrides: Sequence[str] = ()
) -> FinetuneConfig:
    """The configuration for describing a new catalog with a model that a run has trained.

    Args:
        path: a YAML file whose sections `data`, `describe` and `output` are taken; it may have
            others, as a config for training has, or none.
        trained: the run's own configuration, which decides all else: prompt, generation options
            and rules are those that the model was trained and measured with.
        overrides: as for `load_config`; they win over both.

    Raises:
        ConfigError: as `load_config`.
    """
    own, sources = _read_yaml(path)
    known = set(FinetuneConfig.model_fields)
    taken = {name: value for name, value in own.items() if name in DESCRIBING or name not in known}
    left = trained.model_dump(mode="json", exclude=set(DESCRIBING))
    values = left | {"evaluation": left["evaluation"] | {"copied_fields": []}} | taken
    sources |= _apply_overrides(values, overrides)
    if isinstance(values.get("data"), dict):
        values["data"]["described"] = False
    config = _checked(values, sources, path)
    return config.model_copy(update={"data": config.data.without_descriptions()})


def _checked(values: dict[str, Any], sources: dict[KeyPath, str], path: Path) -> FinetuneConfig:
    try:
        return FinetuneConfig.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem, sources, path) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from None


def dump_config(config: FinetuneConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice, of which YAML would keep the last."""


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            continue  # PyYAML refuses it itself
        if key_node.value in seen:
            line = key_node.start_mark.line + 1
            raise ConfigError(f"line {line}: the key '{key_node.value}' is given twice")
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """The file's values, and the place of each key: file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the config {path}: {error.strerror}.", "Name an existing file: --config"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text: {error}.", "Save it as UTF-8.") from None
    try:
        values = yaml.load(text, Loader=_StrictLoader)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a mapping of sections is expected, as in configs/demo.yaml")
    return values, {key: f"{path}:{line}" for key, line in _key_lines(root)}


def _key_lines(node: yaml.Node | None, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, str(key.value))
            yield path, key.start_mark.line + 1
            yield from _key_lines(value, path)


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[KeyPath, str]:
    """Set dotted keys in place; returns where each of them comes from."""
    return {_apply_override(values, override): f"--set {override}" for override in overrides}


def _apply_override(values: dict[str, Any], override: str) -> KeyPath:
    """Set one dotted key in place; returns its path."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: key=value is expected, as in --set seed=7")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is no valid YAML") from None
    path = tuple(key.split("."))
    section = values
    for part in path[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: '{part}' is no section")
    section[path[-1]] = value
    return path


def _explain(problem: Any, sources: dict[KeyPath, str], path: Path) -> str:
    """One line for one pydantic problem: place, key, what is wrong, nearest valid key."""
    location = tuple(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown key" + _nearest_key(location)
    elif problem["type"] == "missing":
        message = "this key is missing"
    elif problem["type"] in ("unknown_option", "owned_option", "wrong_type"):
        option = message.partition(":")[0]
        if (*location, option) in sources:
            location, message = (*location, option), message.partition(": ")[2]
    known = location
    while known and known not in sources:
        known = known[:-1]
    place = sources.get(known, str(path))
    return f"{place}: {'.'.join(location) or 'config'}: {message}"


def _nearest_key(location: KeyPath) -> str:
    section: Any = FinetuneConfig
    for part in location[:-1]:
        section = section.model_fields[part].annotation
        section = next((t for t in get_args(section) if isinstance(t, type)), section)
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return ""
    near = difflib.get_close_matches(location[-1], section.model_fields, n=1, cutoff=0.5)
    known = ", ".join(section.model_fields)
    return f"; did you mean '{near[0]}'?" if near else f"; known here: {known}"
