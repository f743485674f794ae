"""Step 1: read the catalog, and account for every row of it."""

from dataclasses import replace
from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers.catalog import CatalogMaterializer
from materializers.ledger import RowLedgerMaterializer
from steps.context import run_context
from steps.previous import find_previous, ledger_inputs, load_previous
from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.catalog.loading import load_catalog
from vlmtune.catalog.source import catalog_version
from vlmtune.config.data import DataConfig, PromptConfig
from vlmtune.config.model import ModelConfig
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.processor import load_processor
from vlmtune.row_size import RowSizer
from vlmtune.tracking.code_version import code_version


def load_dataset_code() -> str:
    """Part of the cache key: the code and libraries that read catalogs."""
    return code_version(__name__)


@step(
    output_materializers={"catalog": CatalogMaterializer, "ledger": RowLedgerMaterializer},
    cache_policy=CachePolicy(cache_func=load_dataset_code),
)
def load_dataset(
    data: DataConfig,
    prompt: PromptConfig,
    model: ModelConfig,
    base: BaseModelRef,
    version: str | None,
    previous: str | None,
) -> tuple[Annotated[Catalog, "catalog"], Annotated[RowLedger, "ledger"]]:
    """Read, clean, check, measure and split the rows; pictures stay the bytes they are.

    Args:
        data: where the catalog is, what its columns mean and what is asked of its rows.
        prompt, model, base: by which a row's tokens are counted, and rows of the same content
            found; no weights are loaded.
        version: digest of the folder or commit on the Hub; a changed catalog is a changed
            parameter, and so read again. None in a scheduled run, which takes the catalog, and
            the previous ledger, as they are when the time comes.
        previous: id of the ledger whose split is carried on.
    """
    known = version or catalog_version(data)
    inputs = ledger_inputs(data, prompt, model, base, known)
    if version is None:
        previous = find_previous(data, inputs)
    processor = load_processor(base.id, base.commit, model)
    sizer = RowSizer(processor, prompt, data.max_tokens)
    catalog, ledger = load_catalog(
        data,
        known,
        sizer,
        run_context().work_dir / "catalog",
        load_previous(previous),
        prompt.fields,
    )
    return catalog, replace(ledger, inputs=inputs)
