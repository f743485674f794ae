"""Step 1: read the catalog."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers.catalog import CatalogMaterializer
from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.source import load_catalog
from vlmtune.config.data import DataConfig
from vlmtune.tracking.code_version import code_version


def load_dataset_code() -> str:
    """Part of the cache key: the code and libraries that read catalogs."""
    return code_version(__name__)


@step(
    output_materializers=CatalogMaterializer,
    cache_policy=CachePolicy(cache_func=load_dataset_code),
)
def load_dataset(data: DataConfig, catalog_version: str) -> Annotated[Catalog, "catalog"]:
    """Read the catalog's rows; pictures stay the bytes they are.

    Args:
        data: where the catalog is and what its columns mean.
        catalog_version: digest of the folder or commit on the Hub; a changed catalog is a
            changed parameter, and so read again.
    """
    return load_catalog(data, catalog_version)
