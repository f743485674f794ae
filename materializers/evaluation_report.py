"""Stores an evaluation as JSON, and the page that a merchandiser reads."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from materializers.folders import RECORD, FolderMaterializer
from vlmtune.evaluation.results import EvaluationReport


class EvaluationReportMaterializer(FolderMaterializer):
    """One JSON file with every prediction of every row."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (EvaluationReport,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA_ANALYSIS
    SKIP_REGISTRATION = False

    def save(self, data: EvaluationReport) -> None:
        """Write the report."""
        with self.folder_to_write() as folder:
            (folder / RECORD).write_text(data.model_dump_json(indent=1))

    def load(self, data_type: type[EvaluationReport]) -> EvaluationReport:
        """Read the report."""
        return EvaluationReport.model_validate_json((self.folder_to_read() / RECORD).read_text())

    def save_visualizations(self, data: EvaluationReport) -> dict[str, VisualizationType]:
        """The metrics as a table."""
        names = list(data.metrics)
        lines = [f"| metric | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for metric in data.metrics[names[0]]:
            values = [f"{data.metrics[name].get(metric, float('nan')):.3f}" for name in names]
            lines.append(f"| {metric} | {' | '.join(values)} |")
        address = self.write_page("metrics.md", "\n".join(lines))
        return {address: VisualizationType.MARKDOWN}

    def extract_metadata(self, data: EvaluationReport) -> dict[str, Any]:
        """The metrics of each model."""
        return {"rows": data.rows, **data.metrics}
