"""Stores a LoRA adapter: safetensors, processor and record; base weights are refused."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers.folders import RECORD, FolderMaterializer, copy_folder
from vlmtune.models.adapter import Adapter, AdapterRecord, check_adapter_folder

WEIGHTS_FOLDER = "adapter"


class AdapterMaterializer(FolderMaterializer):
    """The adapter's clean folder, with the training record beside it."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Adapter,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.MODEL
    SKIP_REGISTRATION = False

    def save(self, data: Adapter) -> None:
        """Check and copy the adapter's files."""
        check_adapter_folder(data.folder)
        with self.folder_to_write() as folder:
            copy_folder(data.folder, folder / WEIGHTS_FOLDER)
            (folder / RECORD).write_text(data.record.model_dump_json(indent=1))

    def load(self, data_type: type[Adapter]) -> Adapter:
        """Check the files again: an artifact store is not always in safe hands."""
        folder = self.folder_to_read()
        check_adapter_folder(folder / WEIGHTS_FOLDER)
        record = AdapterRecord.model_validate_json((folder / RECORD).read_text())
        return Adapter(folder=folder / WEIGHTS_FOLDER, record=record)

    def compute_content_hash(self, data: Adapter) -> str:
        """SHA-256 over weights and adapter config: equal bits are the same adapter."""
        return data.content_hash

    def extract_metadata(self, data: Adapter) -> dict[str, Any]:
        """Base model, content hash and size of the training."""
        return {
            "base": data.record.base.id,
            "base_revision": data.record.base.revision,
            "content_hash": data.content_hash,
            "train_rows": data.record.train_rows,
            "train_seconds": data.record.train_seconds,
        }
