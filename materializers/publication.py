"""Stores what was published, with the model cards, as JSON."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from materializers.folders import RECORD, FolderMaterializer
from vlmtune.publishing.publication import Publication


class PublicationMaterializer(FolderMaterializer):
    """One JSON file."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Publication,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA
    SKIP_REGISTRATION = False

    def save(self, data: Publication) -> None:
        """Write the record."""
        with self.folder_to_write() as folder:
            (folder / RECORD).write_text(data.model_dump_json(indent=1))

    def load(self, data_type: type[Publication]) -> Publication:
        """Read the record."""
        return Publication.model_validate_json((self.folder_to_read() / RECORD).read_text())

    def save_visualizations(self, data: Publication) -> dict[str, VisualizationType]:
        """The model cards."""
        return {
            self.write_page(f"card_{kind}.md", card): VisualizationType.MARKDOWN
            for kind, card in data.cards.items()
        }

    def extract_metadata(self, data: Publication) -> dict[str, Any]:
        """Status, reason, addresses and tags."""
        facts = {"status": data.status, "reason": data.reason}
        facts |= {kind: repo.url for kind, repo in data.repos.items()}
        facts |= {f"{kind}_tag": repo.tag for kind, repo in data.repos.items() if repo.tag}
        return {name: fact for name, fact in facts.items() if fact}
