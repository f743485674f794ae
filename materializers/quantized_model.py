"""Stores a quantised base model: written straight into the artifact's folder, loaded in place."""

import hashlib
import json
from typing import Any, ClassVar

from zenml.enums import ArtifactType

from materializers.folders import RECORD, FolderMaterializer
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.quantized import QuantizedModel


class QuantizedModelMaterializer(FolderMaterializer):
    """4-bit weights as safetensors, the processor, and which base they are of."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (QuantizedModel,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.MODEL
    SKIP_REGISTRATION = False

    def save(self, data: QuantizedModel) -> None:
        """Write the live model and processor."""
        assert data.model is not None and data.processor is not None
        with self.folder_to_write() as folder:
            data.model.save_pretrained(folder)
            data.processor.save_pretrained(folder)
            (folder / RECORD).write_text(self._record(data))

    def load(self, data_type: type[QuantizedModel]) -> QuantizedModel:
        """Name the folder; the weights are read when the model is loaded from it."""
        folder = self.folder_to_read()
        record = json.loads((folder / RECORD).read_text())
        return QuantizedModel(
            base=BaseModelRef.model_validate(record["base"]),
            quantization=record["quantization"],
            folder=folder,
        )

    def compute_content_hash(self, data: QuantizedModel) -> str:
        """The same base, quantised alike, is the same model: its bytes need not be read."""
        return hashlib.sha256(self._record(data).encode()).hexdigest()

    def extract_metadata(self, data: QuantizedModel) -> dict[str, Any]:
        """Base model and revision."""
        return {"base": data.base.id, "revision": data.base.revision}

    @staticmethod
    def _record(data: QuantizedModel) -> str:
        picture_limits = data.processor.image_processor.to_dict() if data.processor else {}
        return json.dumps(
            {
                "base": data.base.model_dump(),
                "quantization": data.quantization,
                "image_processor": picture_limits,
            },
            sort_keys=True,
            default=str,
        )
