"""Stores an HTML page, with a manifest as every artifact of ours has one."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.types import HTMLString

from materializers.folders import FolderMaterializer
from vlmtune.revision import hash_text

PAGE = "page.html"


class PageMaterializer(FolderMaterializer):
    """One HTML file."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (HTMLString,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA_ANALYSIS

    def save(self, data: HTMLString) -> None:
        """Write the page."""
        with self.folder_to_write() as folder:
            (folder / PAGE).write_text(data, encoding="utf-8")

    def load(self, data_type: type[HTMLString]) -> HTMLString:
        """Read the page."""
        return HTMLString((self.folder_to_read() / PAGE).read_text(encoding="utf-8"))

    def compute_content_hash(self, data: HTMLString) -> str:
        """SHA-256 over the page."""
        return hash_text(data)

    def save_visualizations(self, data: HTMLString) -> dict[str, VisualizationType]:
        """The page itself."""
        return {f"{self.uri}/{PAGE}": VisualizationType.HTML}
