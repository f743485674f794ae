"""Where MLflow keeps runs and versions."""


def mlflow_addresses() -> tuple[str, str]:
    """The addresses of tracking and of the registry that this process uses."""
    import mlflow

    return mlflow.get_tracking_uri(), mlflow.get_registry_uri()
