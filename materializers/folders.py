"""Artifact folders: in place on a local store, through a temporary folder on a remote one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zenml.enums import ArtifactType
from zenml.io import fileio
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.utils import io_utils

from vlmtune.files import link_or_copy

RECORD = "record.json"


class FolderMaterializer(BaseMaterializer):
    """Base of materializers whose artifact is a folder of files.

    On a local store the artifact's folder itself is written to and read from, so that large
    weights are never copied.
    """

    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA
    SKIP_REGISTRATION = True

    @contextmanager
    def folder_to_write(self) -> Iterator[Path]:
        """A folder whose files are the artifact's once the block is left without an error."""
        if not io_utils.is_remote(self.uri):
            folder = Path(self.uri)
            try:
                yield folder
            except BaseException:
                _empty(folder)  # nothing half-written stays behind
                raise
            return
        with self.get_temporary_directory(delete_at_exit=True) as scratch:
            yield Path(scratch)
            io_utils.copy_dir(scratch, self.uri)

    def folder_to_read(self) -> Path:
        """A local folder with the artifact's files; it lives as long as the step does."""
        if not io_utils.is_remote(self.uri):
            return Path(self.uri)
        with self.get_temporary_directory(delete_at_exit=False) as scratch:
            io_utils.copy_dir(self.uri, scratch, overwrite=True)
            return Path(scratch)

    def write_page(self, name: str, content: str | bytes) -> str:
        """Store a visualisation beside the artifact; returns its address."""
        address = f"{self.uri}/{name}"
        with fileio.open(address, "w" if isinstance(content, str) else "wb") as file:
            file.write(content)
        return address


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder's files into another one."""
    shutil.copytree(source, target, dirs_exist_ok=True)


def link_folder(source: Path, target: Path) -> None:
    """Give a folder's files a second name in another one; on another disk they are copied."""
    shutil.copytree(source, target, copy_function=link_or_copy, dirs_exist_ok=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
