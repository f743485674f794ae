"""`run.py init`: from a guess at a catalog's columns to a config that can be run."""

import os
import re
import shlex
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmtune.catalog.languages import detect_language
from vlmtune.catalog.starter.guess import CatalogGuess
from vlmtune.catalog.starter.texts import MOST
from vlmtune.catalog.texts import clean_text
from vlmtune.config.data import DESCRIPTION, PICTURE, DataConfig
from vlmtune.config.loading import load_config
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import ConfigError, UserError

OWN_NAMES = ("row", "row_id", "images")  # fields that a config may not have
MOST_VALUES = 30  # of a category, to suggest them as the only ones allowed
COMMENT_COLUMN = 34  # as in the configs that come with vlmtune
MAX_QUARANTINE: float = DataConfig.model_fields["max_quarantine"].default
SHOWN = 60  # characters of an example
PIPELINES = ("check", "finetune")  # what is to be run next
OTHER_LIKE = "Name another one, as in --like configs/qwen2vl_7b.yaml."
SYSTEM = "You write product descriptions for our shop."
REQUEST = """\
Write the description of this product for our shop.
Only return the description."""


def default_output(source: Path) -> Path:
    """`shop.yaml` for the folder `shop`, and for its tables `shop/metadata.csv` or `shop.csv`."""
    path = source.expanduser().resolve()
    named = path.parent if path.is_file() and path.stem == "metadata" else path
    return Path(f"{named.stem if named.is_file() else named.name}.yaml")


def write_config(guess: CatalogGuess, like: Path, output: Path, force: bool) -> None:
    """Write a config for a catalog; it has been loaded once when it is there.

    Args:
        like: the config that all but the catalog and the prompt are taken from.
        output: where to write it; its folder is made if need be.
        force: write over a file that is there.

    Raises:
        UserError: there is such a file, it cannot be written, or `like` is no usable config.
    """
    if output.exists() and not force:
        raise UserError(
            f"{output} is already there.", "Add --force to write over it, or name another --output."
        )
    text = config_text(guess, like, output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".init-", dir=output.parent) as folder:
            draft = Path(folder) / output.name
            draft.write_text(text, encoding="utf-8")
            _require_loading(draft, like)
            os.replace(draft, output)
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror}.", "Name another --output."
        ) from None


def _require_loading(draft: Path, like: Path) -> None:
    try:
        load_config(draft)
    except ConfigError as error:
        problem = str(error).replace(str(draft), "the new config")
        raise _not_adaptable(like, problem) from None


def config_text(guess: CatalogGuess, like: Path, output: Path) -> str:
    """The text of a config for a catalog, with the comments of the config that it is made from.

    Raises:
        UserError: `like` is no usable config.
    """
    config = load_config(like)
    text = like.read_text(encoding="utf-8")
    for keys, block in _changes(guess, config):
        try:
            text = _replace(text, keys, block)
        except yaml.YAMLError as error:  # as where another section refers to what was replaced
            raise _not_adaptable(like, str(error)) from None
    # What stands above the first section is about the other catalog.
    text = re.sub(r"\A(?:#.*\n)+\s*\n", "", text)
    return f"{_header(like, output)}\n{text}"


def _changes(guess: CatalogGuess, config: FinetuneConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Path of each key that is replaced, and the block that takes its place."""
    yield ("data",), data_block(guess, config.data.max_tokens)
    yield ("prompt",), prompt_block(guess, bool(config.prompt.system))
    evaluation = config.evaluation
    if evaluation.terms:
        words = "your shop's own words: see configs/demo.yaml"
        yield ("evaluation", "terms"), _noted("terms: {}", words)
    known = [field for field in evaluation.copied_fields if field in guess.columns]
    if known != evaluation.copied_fields:
        yield ("evaluation", "copied_fields"), f"copied_fields: {_yaml(known)}"


def _not_adaptable(like: Path, problem: str) -> UserError:
    return UserError(f"{like} cannot be adapted to this catalog: {problem}.", OTHER_LIKE)


def next_commands(output: Path) -> tuple[str, str]:
    """The command that looks at the catalog, and the one that trains on it."""
    name = shlex.quote(str(output))
    check, finetune = (f"python run.py --pipeline {each} --config {name}" for each in PIPELINES)
    return check, finetune


def _header(like: Path, output: Path) -> str:
    check, finetune = next_commands(output)
    return (
        "# Made by run.py init, which guessed what the columns mean: read data and prompt below.\n"
        f"#   {check}\n#   {finetune}\n"
        f"# All but data and prompt is as in {like}.\n"
    )


# The YAML ------------------------------------------------------------------------------------


def data_block(guess: CatalogGuess, max_tokens: int | None) -> str:
    """The section `data`, with what else could be declared as comments.

    Args:
        max_tokens: of a row; it depends on the model, not on the catalog.
    """
    lines = ["data:", *_source_lines(guess), *_column_lines(guess), *_limit_lines(guess)]
    if max_tokens:
        lines.append(
            _noted(f"  max_tokens: {max_tokens}", "longer rows are quarantined, never cut")
        )
    return "\n".join([*lines, *_contract_lines(guess)])


def _source_lines(guess: CatalogGuess) -> Iterator[str]:
    yield f"  source: {_yaml(str(guess.source))}"
    if guess.metadata:
        yield f"  metadata: {_yaml(guess.metadata)}"
    if guess.encoding != "utf-8":
        yield _noted(f"  encoding: {guess.encoding}", "guessed: see that accents come out right")


def _column_lines(guess: CatalogGuess) -> Iterator[str]:
    yield _noted("  columns:", "field: column of the catalog")
    for field, column in guess.columns.items():
        yield f"    {field}: {_yaml(column)}"
    suggested = list(suggested_fields(guess))
    if suggested:
        yield "    # Further columns; a field that is named here can stand in prompt.template:"
    for field, column in suggested:
        yield f"    # {field}: {_yaml(column)}"
    if guess.separator:
        yield f"  picture_separator: {_yaml(guess.separator)}"


def suggested_fields(guess: CatalogGuess) -> Iterator[tuple[str, str]]:
    """Field and column for each column that no field was guessed for."""
    taken = {*guess.columns, *OWN_NAMES}
    for column in guess.others:
        name = re.sub(r"\W+", "_", column.lower()).strip("_")
        name = name if name.isidentifier() else f"column_{name}"
        field, number = name, 2
        while field in taken:
            field, number = f"{name}_{number}", number + 1
        taken.add(field)
        yield field, column


def _limit_lines(guess: CatalogGuess) -> Iterator[str]:
    yield "  held_out:"
    yield _noted("    fraction: 0.1", "share of the products that is kept out of training")
    if "name" in guess.columns:
        yield _noted("    by: name", "the same product with another picture stays on one side")
    note = "the run stops before training above this share of rows"
    yield _noted(f"  max_quarantine: {MAX_QUARANTINE}", note)


def _contract_lines(guess: CatalogGuess) -> Iterator[str]:
    rules = ["texts:"]
    for field, lines in suggested_rules(guess).items():
        rules += [f"  {field}:", *(f"    {line}" for line in lines)]
    prefix = "  # "
    if guess.most_pictures > 1:
        yield _noted("  contract:", "rows that break it are quarantined, each with its reasons")
        yield "    pictures:"
        yield _noted(f"      max_count: {guess.most_pictures}", "as many as the first rows hold")
        prefix = "    # "
    else:
        rules = ["contract:", *(f"  {line}" for line in rules)]
    yield f"{prefix}The first rows keep these rules; without the # every row is held to them:"
    yield from (f"{prefix}{line}" for line in rules)


def suggested_rules(guess: CatalogGuess) -> dict[str, list[str]]:
    """Field -> lines of a rule (see `TextRule`) that the described rows of the sample keep."""
    rules: dict[str, list[str]] = {}
    for field in guess.columns:
        if field not in (PICTURE, DESCRIPTION):
            texts = guess.column_of(field).texts
            rules[field] = list(_rule_of(field, [texts[row] for row in guess.described]))
    texts = guess.column_of(DESCRIPTION).filled
    lengths = sorted(map(len, texts))
    rules[DESCRIPTION] = [f"min_length: {lengths[0]}", f"max_length: {lengths[-1]}"]
    rules[DESCRIPTION] += _language_rule(texts)
    return {field: lines for field, lines in rules.items() if lines}


def _rule_of(field: str, texts: list[str]) -> Iterator[str]:
    values = sorted({text for text in texts if text})
    if empty := texts.count(""):
        yield f"required: false  # empty in {empty} of {len(texts)} rows"
    if field == "category" and len(values) <= MOST_VALUES:
        yield "allowed:"
        yield from (f"  - {_yaml(value)}" for value in values)


def _language_rule(texts: list[str]) -> list[str]:
    (code, count), *_ = Counter(map(detect_language, texts)).most_common(1)
    if not code or count <= MOST * len(texts):
        return []
    return [f"languages: {_yaml([code])}  # {count} of {len(texts)} surely are"]


def prompt_block(guess: CatalogGuess, with_system: bool) -> str:
    """The section `prompt`, which names the fields that were guessed."""
    fields = [field for field in guess.columns if field not in (PICTURE, DESCRIPTION)]
    labels = {"name": "PRODUCT NAME"}
    lines = [f"##{labels.get(field, field.upper())}##: {{{field}}}" for field in fields]
    template = "\n".join(f"    {line}" for line in [*REQUEST.splitlines(), *lines])
    system = f"  system: {SYSTEM}\n" if with_system else ""
    return f"prompt:\n{system}  template: |-\n{template}"


def _noted(line: str, note: str) -> str:
    return f"{line:<{COMMENT_COLUMN - 1}} # {note}"


def _yaml(value: str | list[str]) -> str:
    """A value on one line."""
    is_plain = all(map(str.isprintable, [value] if isinstance(value, str) else value))
    style = None if is_plain else '"'
    options: dict[str, Any] = {"allow_unicode": True, "width": float("inf"), "default_style": style}
    text: str = yaml.safe_dump(value, default_flow_style=True, **options)
    return text.removesuffix("...\n").rstrip("\n")


def _replace(text: str, keys: tuple[str, ...], block: str) -> str:
    """Put a block into the place of a key with its value, which must have lines of their own."""
    lines = text.splitlines()
    first, end = _lines_of(text, keys)
    indent = re.match(rf"(\s*){keys[-1]}\s*:", lines[first])
    if not indent:
        dotted = ".".join(keys)
        raise UserError(f"--like: {dotted} must stand on lines of its own.", OTHER_LIKE)
    block = textwrap.indent(block, indent[1])
    return "\n".join([*lines[:first], block, *lines[end:], ""])


def _lines_of(text: str, keys: tuple[str, ...]) -> tuple[int, int]:
    """First line of a key and the line after its value, from 0."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for name in keys:
        key, node = next((key, value) for key, value in node.value if key.value == name)
    first, end = key.start_mark, node.end_mark.line + bool(node.flow_style)
    # The end is where the next key begins: the comments above that are its own.
    lines = text.splitlines()[:end]
    while not lines[-1].strip() or re.match(rf" {{0,{first.column}}}#", lines[-1]):
        lines.pop()
    return first.line, len(lines)


# What is printed -----------------------------------------------------------------------------


def print_guess(guess: CatalogGuess, output: Path) -> None:
    """What was guessed for each field, with an example, and what to do next."""
    console = Console(highlight=False)
    table = Table("field", "column", "filled", "example", title=f"{guess.source}")
    for field, column in guess.columns.items():
        first = guess.column_of(field)
        names = column if isinstance(column, str) else ", ".join(column)
        filled = f"{len(first.found)} of {len(first.values)}"
        table.add_row(*map(Text, (field, names, filled, _example(first.found[0]))))
    console.print(table)
    for line in _remarks(guess):
        console.print(Text(line), soft_wrap=True)
    check, finetune = next_commands(output)
    lines = (f"{output} is written. Read its data and prompt, then:", f"  {check}", f"  {finetune}")
    console.print(Text("\n".join(lines)), soft_wrap=True)


def _remarks(guess: CatalogGuess) -> Iterator[str]:
    if guess.encoding != "utf-8":
        yield f"The table is no UTF-8; it looks like {guess.encoding}."
    if guess.most_pictures > 1:
        yield f"Up to {guess.most_pictures} pictures in a row."
    rows = len(guess.column_of(DESCRIPTION).values)
    if guess.incomplete > MAX_QUARANTINE * rows:
        yield (
            f"{guess.incomplete} of {rows} rows lack a picture or a text and will be quarantined; "
            "the check tells which. More than data.max_quarantine stop the run."
        )
    if guess.others:
        yield f"Not used: {', '.join(guess.others)}"


def _example(value: Any) -> str:
    """The beginning of a value, on one line."""
    if isinstance(value, list):
        return _example(value[0])
    if isinstance(value, dict):
        return _example(value.get("path") or value.get("bytes"))
    if isinstance(value, bytes):
        return "(the bytes of a picture)"
    line = " ".join(clean_text(str(value)).text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."
