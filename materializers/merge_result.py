"""Stores the outcome of a merge: the merged model, or why there is none."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers.folders import RECORD, FolderMaterializer
from vlmtune.models.merging import MergeRecord, MergeResult

MODEL_FOLDER = "model"


class MergeResultMaterializer(FolderMaterializer):
    """The merged weights are written straight into the artifact's folder."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (MergeResult,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.MODEL
    SKIP_REGISTRATION = False

    def save(self, data: MergeResult) -> None:
        """Write the record and, if there is one, the model."""
        with self.folder_to_write() as folder:
            if data.model is not None and data.processor is not None:
                data.model.save_pretrained(folder / MODEL_FOLDER)
                data.processor.save_pretrained(folder / MODEL_FOLDER)
            (folder / RECORD).write_text(data.record.model_dump_json(indent=1))

    def load(self, data_type: type[MergeResult]) -> MergeResult:
        """Name the folder of the merged model; nothing is read yet."""
        folder = self.folder_to_read()
        record = MergeRecord.model_validate_json((folder / RECORD).read_text())
        model_folder = folder / MODEL_FOLDER
        return MergeResult(record=record, folder=model_folder if model_folder.exists() else None)

    def extract_metadata(self, data: MergeResult) -> dict[str, Any]:
        """Outcome and origin."""
        return data.record.model_dump(exclude={"base"}) | {"base": data.record.base.id}
