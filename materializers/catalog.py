"""Stores a catalog: its Arrow table as it is, with a contact sheet to look at."""

import json
from itertools import islice
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from materializers.folders import RECORD, FolderMaterializer
from vlmtune.catalog.catalog import PICTURES, ROW_ID, Catalog, hash_rows, iterate_batches
from vlmtune.catalog.contact_sheet import contact_sheet

SHOWN_PICTURES = 48


class CatalogMaterializer(FolderMaterializer):
    """Arrow as is: pictures are neither decoded nor brought through pandas."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Catalog,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA
    SKIP_REGISTRATION = False

    def save(self, data: Catalog) -> None:
        """Write the table and where it is from."""
        with self.folder_to_write() as folder:
            shards = None if len(data.rows) else 1  # it could not be read back from none
            data.rows.save_to_disk(str(folder / "rows"), num_shards=shards)
            record = {
                "source": data.source,
                "version": data.version,
                "background": data.background,
            }
            (folder / RECORD).write_text(json.dumps(record))

    def load(self, data_type: type[Catalog]) -> Catalog:
        """Map the table into memory: pages are read as rows are asked for."""
        from datasets import load_from_disk

        folder = self.folder_to_read()
        record = json.loads((folder / RECORD).read_text())
        return Catalog(rows=load_from_disk(str(folder / "rows")), **record)

    def compute_content_hash(self, data: Catalog) -> str:
        """SHA-256 over all rows and the bytes of their pictures."""
        return hash_rows(iterate_batches(data.rows))

    def save_visualizations(self, data: Catalog) -> dict[str, VisualizationType]:
        """A sheet with the first pictures."""
        shown = (
            (row[PICTURES][0]["bytes"], row.get("name") or row[ROW_ID])
            for row in islice(data.rows, SHOWN_PICTURES)
        )
        address = self.write_page("contact_sheet.png", contact_sheet(shown, limit=SHOWN_PICTURES))
        return {address: VisualizationType.IMAGE}

    def extract_metadata(self, data: Catalog) -> dict[str, Any]:
        """Size and origin of the catalog."""
        return {"rows": len(data.rows), "source": data.source, "version": data.version}
