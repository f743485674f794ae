"""From a catalog row to a prompt and a completion: the one owner of templates."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtune.arrow_file import write_rows
from vlmtune.artifact import Artifact
from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.ledger import RowLedger, Side
from vlmtune.config.data import DESCRIPTION, DataConfig, PromptConfig

if TYPE_CHECKING:
    from datasets import Dataset, Features

Message = dict[str, str]
FROM_LEDGER = ("tokens", "group", "shared_with_train")  # columns of each example


@dataclass(frozen=True)
class Examples(Artifact):
    """Train and held-out rows as conversations.

    Both tables have the columns `row` (number of the row in the catalog, where its picture
    is), `row_id`, `tokens` (of prompt, pictures and completion together; 0 if unknown), `prompt`
    and `completion` (lists of {"role", "content"}), and `group` and `shared_with_train` as in
    the ledger. The pictures stay in the catalog's own table: a new template copies no picture.
    """

    train: "Dataset"
    held_out: "Dataset"
    scratch: Any = field(default=None, repr=False, compare=False)


def build_prompt(prompt: PromptConfig, fields: dict[str, str]) -> list[Message]:
    """The messages before the answer. The picture is placed at the start of the user message
    when the row is encoded."""
    user = {"role": "user", "content": prompt.template.format(**fields)}
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, user]


def build_completion(description: str) -> list[Message]:
    """The answer that the model is to learn."""
    return [{"role": "assistant", "content": description.strip()}]


def format_examples(
    catalog: Catalog, ledger: RowLedger, data: DataConfig, prompt: PromptConfig
) -> Examples:
    """Write each row's conversation, on the side of the split that the ledger has it on.

    Raises:
        UserError: too much of the catalog is in quarantine, or one side would be empty.
    """
    ledger.require_acceptable(data.max_quarantine)
    ledger.require_both_sides(data.held_out.fraction)
    lines = {
        line[ROW_ID]: line for line in ledger.lines.select_columns([ROW_ID, "side", *FROM_LEDGER])
    }
    scratch = tempfile.TemporaryDirectory(prefix="vlmtune-examples-")

    def conversations(side: Side) -> "Dataset":
        rows = enumerate(catalog.texts())
        records = (
            _conversation(number, row, prompt)
            | {name: lines[row[ROW_ID]][name] for name in FROM_LEDGER}
            for number, row in rows
            if lines[row[ROW_ID]]["side"] == side
        )
        return write_rows(Path(scratch.name) / f"{side}.arrow", _conversation_features(), records)

    return Examples(conversations(Side.TRAIN), conversations(Side.HELD_OUT), scratch)


def format_prompts(
    catalog: Catalog, ledger: RowLedger, prompt: PromptConfig, folder: Path
) -> "Dataset":
    """Write the prompt of each row that is to be described.

    Args:
        folder: where the table is kept, which is mapped from there.

    Returns:
        A table as in `Examples`, without completions.

    Raises:
        UserError: all of the catalog is in quarantine.
    """
    ledger.require_acceptable(max_quarantine=1)
    tokens = dict(zip(ledger.lines[ROW_ID], ledger.lines["tokens"], strict=True))
    records = (
        {"tokens": tokens[row[ROW_ID]], **_question(number, row, prompt)}
        for number, row in enumerate(catalog.texts())
    )
    return write_rows(folder / "prompts.arrow", _question_features(), records)


def _question_features() -> "Features":
    from datasets import Features, Value

    columns = {"row": Value("int64"), ROW_ID: Value("string"), "tokens": Value("int64")}
    return Features(columns | {"prompt": _messages()})


def _messages() -> Any:
    from datasets import List, Value

    return List({"role": Value("string"), "content": Value("string")})


def _conversation_features() -> "Features":
    from datasets import Features, Value

    added = {"completion": _messages(), "group": Value("string")}
    return Features({**_question_features(), **added, "shared_with_train": Value("string")})


def _question(number: int, row: dict[str, Any], prompt: PromptConfig) -> dict[str, Any]:
    return {
        "row": number,
        ROW_ID: row[ROW_ID],
        "prompt": build_prompt(prompt, fields_of(row)),
    }


def _conversation(number: int, row: dict[str, Any], prompt: PromptConfig) -> dict[str, Any]:
    completion = build_completion(row[DESCRIPTION])
    return {**_question(number, row, prompt), "completion": completion}


def fields_of(row: dict[str, Any]) -> dict[str, str]:
    """The fields that a prompt may name, of a row of `Catalog.texts`."""
    return {field: text for field, text in row.items() if field not in (ROW_ID, DESCRIPTION)}


def with_pictures(examples: "Dataset", catalog: Catalog) -> "Dataset":
    """The same rows with an `images` column, decoded only when a row is asked for."""

    def transform(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "images": [catalog.open_pictures(row) for row in batch["row"]]}

    return examples.with_transform(transform)
