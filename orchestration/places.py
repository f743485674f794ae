"""Where a run keeps what it makes: the places that the config and the stack decide."""

import re

from vlmtune.config.tree import FinetuneConfig
from vlmtune.tracking.addresses import mlflow_addresses


def find_places(config: FinetuneConfig) -> dict[str, str | None]:
    """The places of a run on the active stack, for its summary; None where the stack has no such
    place. Addresses are shown without user names, passwords and parameters."""
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration

    from steps.registry import open_registry

    client = Client()
    registry = open_registry(config.data.catalog_name)
    tracking, versions = mlflow_addresses() if registry else (None, None)
    places = {
        "zenml_config": GlobalConfiguration().config_directory,
        "zenml_store": client.zen_store.url,
        "stack": client.active_stack_model.name,
        "artifact_store": client.active_stack.artifact_store.path,
        "mlflow_tracking": tracking,
        "mlflow_registry": versions,
        "registered_model": registry.name if registry else None,
        "work_dir": str(config.output.work_dir.resolve()),
    }
    return {name: place and without_credentials(place) for name, place in places.items()}


def without_credentials(address: str) -> str:
    """`https://user:password@host/path?token=...` as `https://host/path`."""
    scheme, slashes, rest = address.partition("://")
    if not slashes:
        return address
    return f"{scheme}://{re.sub(r'^[^/]*@', '', rest).partition('?')[0]}"
