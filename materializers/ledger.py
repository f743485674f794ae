"""Stores a row ledger: its lines as an Arrow table, the quarantine as the folder that it is."""

import json
from dataclasses import asdict
from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers.folders import RECORD, FolderMaterializer, copy_folder
from vlmtune.catalog.catalog import hash_rows
from vlmtune.catalog.ledger import RowLedger, SharedValue

RECORDED = (
    "catalog_name",
    "catalog_version",
    "pictures_decoded",
    "pictures_known",
    "previous",
    "inputs",
)


class RowLedgerMaterializer(FolderMaterializer):
    """One Arrow table, and the quarantined rows with their originals."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (RowLedger,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA
    SKIP_REGISTRATION = False

    def save(self, data: RowLedger) -> None:
        """Write lines, quarantine and what was counted."""
        with self.folder_to_write() as folder:
            data.lines.save_to_disk(str(folder / "lines"))
            copy_folder(data.quarantine, folder / "quarantine")
            record = {name: getattr(data, name) for name in RECORDED}
            record["shared"] = [asdict(value) for value in data.shared]
            (folder / RECORD).write_text(json.dumps(record))

    def load(self, data_type: type[RowLedger]) -> RowLedger:
        """Map the lines into memory."""
        from datasets import load_from_disk

        folder = self.folder_to_read()
        record = json.loads((folder / RECORD).read_text())
        lines = load_from_disk(str(folder / "lines"))
        record["shared"] = [SharedValue(**value) for value in record.get("shared", [])]
        return RowLedger(lines=lines, quarantine=folder / "quarantine", **record)

    def compute_content_hash(self, data: RowLedger) -> str:
        """SHA-256 over all lines and the ledger that the split was carried on from.

        How many pictures had to be decoded for it is no part of what it says.
        """
        lines = hash_rows(data.lines.iter(batch_size=1000))
        return f"{lines}-{data.previous or ''}"

    def extract_metadata(self, data: RowLedger) -> dict[str, Any]:
        """Counts, and what a later run looks for to carry the split on."""
        record = {name: getattr(data, name) for name in RECORDED}
        known = {name: value for name, value in record.items() if value is not None}
        return data.counts | known
