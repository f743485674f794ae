"""The registry of the stack that a run uses. Nothing else, since a step that only looks up a
version must not run again when the code that judges or publishes one has changed."""

from zenml.client import Client

from vlmtune.tracking.registry import Registry, registered_name


def open_registry(catalog_name: str) -> Registry | None:
    """The versions of a catalog's models; None on a stack without MLflow."""
    tracker = Client().active_stack.experiment_tracker
    if tracker is None or tracker.flavor != "mlflow":
        return None
    tracker.configure_mlflow()
    return Registry(registered_name(catalog_name))
