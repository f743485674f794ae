"""Stores the conversations for training and evaluation; their pictures stay in the catalog."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from materializers.folders import FolderMaterializer
from vlmtune.catalog.catalog import hash_rows, iterate_batches
from vlmtune.prompting import Examples

SHOWN_ROWS = 20


class ExamplesMaterializer(FolderMaterializer):
    """Two Arrow tables, train and held_out."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Examples,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA
    SKIP_REGISTRATION = False

    def save(self, data: Examples) -> None:
        """Write both tables."""
        with self.folder_to_write() as folder:
            data.train.save_to_disk(str(folder / "train"))
            data.held_out.save_to_disk(str(folder / "held_out"))

    def load(self, data_type: type[Examples]) -> Examples:
        """Map both tables into memory."""
        from datasets import load_from_disk

        folder = self.folder_to_read()
        return Examples(
            train=load_from_disk(str(folder / "train")),
            held_out=load_from_disk(str(folder / "held_out")),
        )

    def compute_content_hash(self, data: Examples) -> str:
        """SHA-256 over both tables."""
        sides = [hash_rows(iterate_batches(side)) for side in (data.train, data.held_out)]
        return "-".join(sides)

    def save_visualizations(self, data: Examples) -> dict[str, VisualizationType]:
        """The first conversations of each side, to read."""
        lines = ["# Conversations", ""]
        for title, side in (("Train", data.train), ("Held out", data.held_out)):
            lines += [f"## {title}: {len(side)} rows", ""]
            for row in side.select(range(min(SHOWN_ROWS, len(side)))):
                lines += [f"### {row['row_id']}", ""]
                for message in row["prompt"] + row["completion"]:
                    quoted = message["content"].replace("\n", "\n    ")
                    lines += [f"    {message['role']}: {quoted}", ""]
        address = self.write_page("conversations.md", "\n".join(lines))
        return {address: VisualizationType.MARKDOWN}

    def extract_metadata(self, data: Examples) -> dict[str, Any]:
        """Rows on each side."""
        return {"train_rows": len(data.train), "held_out_rows": len(data.held_out)}
