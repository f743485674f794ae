"""From a catalog row to a prompt and a completion: the one owner of templates."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmtune.artifact import Artifact
from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.pictures import decode_picture
from vlmtune.catalog.split import split_rows
from vlmtune.config.data import DESCRIPTION, PICTURE, DataConfig, PromptConfig

if TYPE_CHECKING:
    from datasets import Dataset

Message = dict[str, str]


@dataclass(frozen=True)
class Examples(Artifact):
    """Train and held-out rows as conversations.

    Both tables have the columns `row` (number of the row in the catalog, where its picture
    is), `row_id`, `prompt` and `completion` (lists of {"role", "content"}). The pictures stay
    in the catalog's own table: a new template copies no picture.
    """

    train: "Dataset"
    held_out: "Dataset"


def build_prompt(prompt: PromptConfig, fields: dict[str, str]) -> list[Message]:
    """The messages before the answer. The picture is placed at the start of the user message
    when the row is encoded."""
    user = {"role": "user", "content": prompt.template.format(**fields)}
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, user]


def build_completion(description: str) -> list[Message]:
    """The answer that the model is to learn."""
    return [{"role": "assistant", "content": description.strip()}]


def format_examples(catalog: Catalog, data: DataConfig, prompt: PromptConfig) -> Examples:
    """Split the catalog and write each row's conversation.

    Raises:
        UserError: one of the sides of the split would be empty.
    """
    from datasets import Dataset

    table = catalog.rows.remove_columns(PICTURE)
    train, held_out = split_rows(list(table[data.held_out.by or ROW_ID]), data.held_out)

    def conversations(rows: list[int]) -> "Dataset":
        records = [_conversation(row, table[row], data, prompt) for row in rows]
        return Dataset.from_list(records)

    return Examples(train=conversations(train), held_out=conversations(held_out))


def _conversation(
    number: int, row: dict[str, Any], data: DataConfig, prompt: PromptConfig
) -> dict[str, Any]:
    fields = {field: row[field] for field in data.columns if field not in (PICTURE, DESCRIPTION)}
    return {
        "row": number,
        ROW_ID: row[ROW_ID],
        "prompt": build_prompt(prompt, fields),
        "completion": build_completion(row[DESCRIPTION]),
    }


def with_pictures(examples: "Dataset", catalog: Catalog) -> "Dataset":
    """The same rows with an `images` column, decoded only when a row is asked for."""

    def transform(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pictures = [[decode_picture(catalog.picture(row))] for row in batch["row"]]
        return {**batch, "images": pictures}

    return examples.with_transform(transform)
