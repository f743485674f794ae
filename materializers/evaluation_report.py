"""Stores an evaluation as JSON, and the page that a merchandiser reads."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from materializers.folders import RECORD, FolderMaterializer
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.revision import hash_text

PREDICTIONS = "predictions.parquet"


class EvaluationReportMaterializer(FolderMaterializer):
    """One JSON file with all that was found, and every prediction of every row as a table."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (EvaluationReport,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA_ANALYSIS
    SKIP_REGISTRATION = False

    def save(self, data: EvaluationReport) -> None:
        """Write the report."""
        import pyarrow
        from pyarrow import parquet

        with self.folder_to_write() as folder:
            (folder / RECORD).write_text(data.model_dump_json(indent=1))
            parquet.write_table(pyarrow.table(data.table()), folder / PREDICTIONS)

    def load(self, data_type: type[EvaluationReport]) -> EvaluationReport:
        """Read the report."""
        return EvaluationReport.model_validate_json((self.folder_to_read() / RECORD).read_text())

    def compute_content_hash(self, data: EvaluationReport) -> str:
        """SHA-256 over all that was found; how long it took says nothing of the models."""
        return hash_text(data.model_dump_json(exclude={"seconds"}))

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
