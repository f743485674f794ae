"""Stores plain facts, such as what changed in a catalog: JSON, verified like every artifact."""

import json
from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers.folders import RECORD, FolderMaterializer
from vlmtune.revision import hash_text


class FactsMaterializer(FolderMaterializer):
    """One JSON file."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (dict,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA

    def save(self, data: dict[str, Any]) -> None:
        """Write the facts."""
        with self.folder_to_write() as folder:
            (folder / RECORD).write_text(json.dumps(data), encoding="utf-8")

    def load(self, data_type: type[dict[str, Any]]) -> dict[str, Any]:
        """Read the facts."""
        facts: dict[str, Any] = json.loads((self.folder_to_read() / RECORD).read_text("utf-8"))
        return facts

    def compute_content_hash(self, data: dict[str, Any]) -> str:
        """SHA-256 over the facts."""
        return hash_text(json.dumps(data, sort_keys=True))
