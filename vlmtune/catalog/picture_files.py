"""From what a cell says to the bytes of a picture, without ever leaving the catalog's folder."""

from collections.abc import Sequence
from pathlib import Path

from vlmtune.catalog.columns import PictureReference
from vlmtune.catalog.downloads import Downloader, is_address
from vlmtune.catalog.guarded_network import DownloadError

MAX_FILE_BYTES = 64_000_000


class PictureProblem(Exception):
    """A picture cannot be had.

    Attributes:
        code: of the reason in the ledger.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def picture_name(reference: PictureReference) -> str:
    """The path or address of a picture; of embedded bytes the name they came by, or empty.

    An address is shown without query and login, which may be keys.
    """
    name = reference if isinstance(reference, str) else reference[1]
    if is_address(name):
        scheme, _, rest = name.partition("://")
        server, slash, path = rest.partition("?")[0].partition("/")
        name = f"{scheme}://{server.rpartition('@')[2]}{slash}{path}"
    return name.encode(errors="backslashreplace").decode()  # JSON may hold half a character


def read_picture(
    reference: PictureReference, folders: Sequence[Path], downloader: Downloader
) -> bytes:
    """The encoded bytes of a picture.

    Args:
        folders: a picture named by a path, which starts from the first, must lie in one of them.

    Raises:
        PictureProblem: it is not there, lies elsewhere, is too large or cannot be fetched.
    """
    if not isinstance(reference, str):
        return reference[0]
    try:
        if is_address(reference):
            return downloader.fetch(reference)
        return _read_file(reference, folders)
    except DownloadError as error:
        raise PictureProblem("download_failed", str(error)) from None
    except (OSError, ValueError, RuntimeError) as error:  # the last: a link to itself
        raise PictureProblem("picture_not_found", f"picture {reference!r}: {error}") from None


def _read_file(name: str, folders: Sequence[Path]) -> bytes:
    """A name that leads out of the folder is refused, by a link too."""
    path = (folders[0] / name).resolve()
    if not any(path.is_relative_to(folder.resolve()) for folder in folders):
        raise PictureProblem(
            "picture_outside_folder", f"picture {name!r} lies outside the catalog's folder"
        )
    if not path.is_file():
        raise PictureProblem("picture_not_found", f"picture {name!r} does not exist")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise PictureProblem(
            "picture_too_large",
            f"picture {name!r} has {size:,} bytes, at most {MAX_FILE_BYTES:,} are read",
        )
    return path.read_bytes()
