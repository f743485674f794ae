"""Stores a described catalog: Parquet for the rows, JSON for how it went."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers.folders import RECORD, FolderMaterializer
from vlmtune.describing.results import DescribingRecord, Descriptions

TABLE = "descriptions.parquet"


class DescriptionsMaterializer(FolderMaterializer):
    """One Parquet file with a row for each described product."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Descriptions,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA
    SKIP_REGISTRATION = False

    def save(self, data: Descriptions) -> None:
        """Write rows and record."""
        from pyarrow.parquet import write_table

        with self.folder_to_write() as folder:
            write_table(data.table, folder / TABLE)
            (folder / RECORD).write_text(data.record.model_dump_json(indent=1))

    def load(self, data_type: type[Descriptions]) -> Descriptions:
        """Read rows and record."""
        from pyarrow.parquet import read_table

        folder = self.folder_to_read()
        record = DescribingRecord.model_validate_json((folder / RECORD).read_text())
        return Descriptions(table=read_table(folder / TABLE), record=record)

    def extract_metadata(self, data: Descriptions) -> dict[str, Any]:
        """What wrote them, and how many."""
        return {"model": data.record.model, "flags": data.record.flags} | data.record.metrics
