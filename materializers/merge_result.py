"""Stores the outcome of a merge: the merged model and its checks, or why there is none."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from materializers.folders import RECORD, FolderMaterializer, link_folder
from vlmtune.models.merge_record import MergeRecord, MergeResult
from vlmtune.publishing.same_files import require_same
from vlmtune.revision import hash_files, hash_text

MODEL_FOLDER = "model"


class MergeResultMaterializer(FolderMaterializer):
    """The merged model's files get a second name in the artifact's folder: on the same disk the
    weights are written once."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (MergeResult,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.MODEL
    SKIP_REGISTRATION = False

    def save(self, data: MergeResult) -> None:
        """Write the record and, if there is one, the model, which must be the one recorded."""
        with self.folder_to_write() as folder:
            if data.folder is not None:
                link_folder(data.folder, folder / MODEL_FOLDER)
                require_same(
                    data.record.files,
                    hash_files(folder / MODEL_FOLDER),
                    "the merged model",
                    "Run again; if it comes back, look for what changes the files in work_dir.",
                )
            (folder / RECORD).write_text(data.record.model_dump_json(indent=1))

    def load(self, data_type: type[MergeResult]) -> MergeResult:
        """Name the folder of the merged model; nothing is read yet."""
        folder = self.folder_to_read()
        record = MergeRecord.model_validate_json((folder / RECORD).read_text())
        model_folder = folder / MODEL_FOLDER
        return MergeResult(record=record, folder=model_folder if model_folder.exists() else None)

    def save_visualizations(self, data: MergeResult) -> dict[str, VisualizationType]:
        """The outcome and the checks as a table."""
        outcome = [data.record.status, data.record.reason]
        lines = [f"**{': '.join(filter(None, outcome))}**", "", "| check | wanted | found | met |"]
        lines += ["|---" * 4 + "|"]
        for check in data.record.checks:
            met = "yes" if check.met else "**no**"
            lines.append(f"| {check.name} | {check.wanted} | {check.found} | {met} |")
        address = self.write_page("checks.md", "\n".join(lines) + "\n")
        return {address: VisualizationType.MARKDOWN}

    def compute_content_hash(self, data: MergeResult) -> str:
        """SHA-256 over the record, which holds that of each file."""
        return hash_text(data.record.model_dump_json())

    def extract_metadata(self, data: MergeResult) -> dict[str, Any]:
        """Outcome, origin and what each check found."""
        record = data.record
        return record.model_dump(exclude={"base", "checks", "files"}) | {
            "base": record.base.id,
            "checks": {check.name: check.found for check in record.checks},
        }
