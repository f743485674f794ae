"""Step 1: read the catalog."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers.catalog import CatalogMaterializer
from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.source import catalog_version, load_catalog
from vlmtune.config.data import DataConfig
from vlmtune.tracking.code_version import code_version


def load_dataset_code() -> str:
    """Part of the cache key: the code and libraries that read catalogs."""
    return code_version(__name__)


@step(
    output_materializers=CatalogMaterializer,
    cache_policy=CachePolicy(cache_func=load_dataset_code),
)
def load_dataset(data: DataConfig, version: str | None) -> Annotated[Catalog, "catalog"]:
    """Read the catalog's rows; pictures stay the bytes they are.

    Args:
        data: where the catalog is and what its columns mean.
        version: digest of the folder or commit on the Hub; a changed catalog is a changed
            parameter, and so read again. None in a scheduled run, which takes the catalog as it
            is when the time comes.
    """
    return load_catalog(data, version or catalog_version(data))
