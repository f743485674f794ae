"""The manifest of stored files: their hashes as they were made, verified before they are used."""

import json
from collections.abc import Mapping
from pathlib import Path

from vlmtune.errors import UserError
from vlmtune.revision import differences, hash_files

MANIFEST = "files.json"
MAKE_ANEW = (
    "Restore it from a backup, or run the pipeline that made it with --no-cache, which makes it "
    "anew."
)


def render_manifest(files: Mapping[str, str]) -> str:
    """The text of a manifest: name -> SHA-256; the same files give the same text."""
    return json.dumps(files, indent=1, sort_keys=True) + "\n"


def write_manifest(folder: Path) -> Path:
    """Record the files below a folder as they are now."""
    path = folder / MANIFEST
    path.unlink(missing_ok=True)
    path.write_text(render_manifest(hash_files(folder)), encoding="utf-8")
    return path


def first_difference(folder: Path, manifest: str = MANIFEST) -> tuple[str, str] | None:
    """A file that is not as the folder's manifest records it, and what it is: changed, missing or
    added. The manifest itself may be that file. None if all are as recorded.

    Args:
        manifest: name of the manifest's file.
    """
    found = hash_files(folder)
    text = (folder / manifest).read_bytes() if found.pop(manifest, None) else b""
    recorded = _parse(text)
    if recorded is None:
        return manifest, "changed" if text else "missing"
    return next(iter(differences(recorded, found).items()), None)


def require_whole(folder: Path, address: str) -> None:
    """Refuse a folder whose files are not those of its manifest.

    Args:
        address: where the folder is stored, for the error.

    Raises:
        UserError: a file is changed, missing, added or cannot be read; the manifest is one of them.
    """
    if not any(path.is_file() for path in folder.rglob("*")):
        raise UserError(f"the artifact at {address} is missing: it has no files.", MAKE_ANEW)
    try:
        difference = first_difference(folder)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.", MAKE_ANEW) from None
    if difference:
        name, what = difference
        raise UserError(
            f"{address}/{name} is {what}: the artifact is not as it was stored.", MAKE_ANEW
        )


def _parse(text: bytes) -> dict[str, str] | None:
    """The recorded hashes; None if this is not, byte for byte, a manifest."""
    try:
        files = json.loads(text)
    except ValueError:
        return None
    is_manifest = isinstance(files, dict) and render_manifest(files).encode() == text
    return files if is_manifest else None
