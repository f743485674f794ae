"""Step 2: write each row as a conversation, unless too much of the catalog is in quarantine."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers.examples import ExamplesMaterializer
from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.config.data import DataConfig, PromptConfig
from vlmtune.prompting import Examples, format_examples
from vlmtune.tracking.code_version import code_version


def format_messages_code() -> str:
    """Part of the cache key: the code and libraries that format rows."""
    return code_version(__name__)


@step(
    output_materializers=ExamplesMaterializer,
    cache_policy=CachePolicy(cache_func=format_messages_code),
)
def format_messages(
    catalog: Catalog, ledger: RowLedger, data: DataConfig, prompt: PromptConfig
) -> Annotated[Examples, "examples"]:
    """Write prompts and completions of the rows on either side of the split."""
    return format_examples(catalog, ledger, data, prompt)
