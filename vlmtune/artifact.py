"""The base of what steps hand to each other."""

from typing import Any

from pydantic_core import CoreSchema, core_schema

# Files that may hold a pickle: running code on loading, they belong into no artifact or push.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class Artifact:
    """An object that an orchestrator hands over as it is.

    Orchestrators check a step's inputs with pydantic, which would take a dataclass apart and
    look for types that are imported only where they are used.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return core_schema.is_instance_schema(cls)
