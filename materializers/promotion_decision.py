"""Stores the gate's decision as JSON, and its checks as a table."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from materializers.folders import RECORD, FolderMaterializer
from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.revision import hash_text


class PromotionDecisionMaterializer(FolderMaterializer):
    """One JSON file."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (PromotionDecision,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA_ANALYSIS
    SKIP_REGISTRATION = False

    def save(self, data: PromotionDecision) -> None:
        """Write the record."""
        with self.folder_to_write() as folder:
            (folder / RECORD).write_text(data.model_dump_json(indent=1))

    def load(self, data_type: type[PromotionDecision]) -> PromotionDecision:
        """Read the record."""
        return PromotionDecision.model_validate_json((self.folder_to_read() / RECORD).read_text())

    def compute_content_hash(self, data: PromotionDecision) -> str:
        """SHA-256 over the record."""
        return hash_text(data.model_dump_json())

    def save_visualizations(self, data: PromotionDecision) -> dict[str, VisualizationType]:
        """What was asked and what was found."""
        words = {True: "met", False: "not met", None: "not measured"}
        lines = [f"**{data.describe()}**", "", "| check | wanted | found | |", "|---|---|---|---|"]
        lines += [f"| {c.name} | {c.wanted} | {c.found} | {words[c.met]} |" for c in data.checks]
        address = self.write_page("gate.md", "\n".join(lines))
        return {address: VisualizationType.MARKDOWN}

    def extract_metadata(self, data: PromotionDecision) -> dict[str, Any]:
        """The verdict and its reasons."""
        return {"subject": data.subject, "verdict": data.verdict, "reasons": data.reasons}
