"""Artifact folders: in place on a local store, through a temporary folder on a remote one.

Each has a manifest of its files, which is verified before anything of it is used.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zenml.enums import ArtifactType
from zenml.io import fileio
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.utils import io_utils

from vlmtune.files import link_or_copy
from vlmtune.manifest import MANIFEST, render_manifest, require_whole, write_manifest

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
                _complete(folder)
            except BaseException:
                _empty(folder)  # nothing half-written stays behind
                raise
            return
        with self.get_temporary_directory(delete_at_exit=True) as scratch:
            yield Path(scratch)
            _complete(Path(scratch))
            io_utils.copy_dir(scratch, self.uri)

    def folder_to_read(self) -> Path:
        """A local folder with the artifact's files; it lives as long as the step does.

        Raises:
            UserError: they are not, byte for byte, those that were stored.
        """
        if not io_utils.is_remote(self.uri):
            folder = Path(self.uri)
        else:
            with self.get_temporary_directory(delete_at_exit=False) as scratch:
                io_utils.copy_dir(self.uri, scratch, overwrite=True)
                folder = Path(scratch)
        require_whole(folder, self.uri)
        return folder

    def write_page(self, name: str, content: str | bytes) -> str:
        """Store a visualisation beside the artifact, and in its manifest; returns its address."""
        content = content.encode() if isinstance(content, str) else content
        address, manifest = f"{self.uri}/{name}", f"{self.uri}/{MANIFEST}"
        with fileio.open(address, "wb") as file:
            file.write(content)
        files = {}
        if fileio.exists(manifest):
            with fileio.open(manifest, "r") as file:
                files = json.loads(file.read())
        files[name] = hashlib.sha256(content).hexdigest()
        with fileio.open(manifest, "w") as file:
            file.write(render_manifest(files))
        return address


def _complete(folder: Path) -> None:
    """Write the manifest, and give all files the mode that it has got from the umask: libraries
    write weights through temporary files, which nobody else may read."""
    mode = write_manifest(folder).stat().st_mode
    for path in folder.rglob("*"):
        path.chmod(mode | (mode & 0o444) >> 2 if path.is_dir() else mode)


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
