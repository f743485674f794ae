"""Where a catalog's rows come from: local folders and tables, data sets on the Hub, or several."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.catalog.columns import read_pictures, require_columns
from vlmtune.catalog.downloads import is_address
from vlmtune.catalog.tables import TABLE_SUFFIXES, SourceRow, arrow_rows, read_table
from vlmtune.config.data import PICTURE, Columns, DataConfig, FurtherSource, SourceConfig
from vlmtune.errors import UserError
from vlmtune.revision import hash_file, hash_folder, is_local, resolve_commit

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"  # the imagefolder convention's name of the picture column
JOINED = "+"  # between the versions of several sources
HUB_BATCH = 100


@dataclass(frozen=True)
class OpenSource:
    """A source whose rows can be read.

    Attributes:
        folders: pictures named by a path must lie in one of them; a path starts from the first.
        columns: field -> column of this source.
        rows: read as they are asked for.
    """

    folders: tuple[Path, ...]
    columns: Columns
    rows: Iterator[SourceRow]


def catalog_version(data: DataConfig) -> str:
    """What identifies the catalog's present content, without decoding a picture.

    Returns:
        `sha256:...` over names and contents of all files of a local source, or the commit of a
        Hub data set; of several sources all of these, joined by `+`.

    Raises:
        UserError: no such source, or the Hub cannot be asked.
    """
    return JOINED.join(_source_version(source, data) for source in data.all_sources)


def _source_version(source: FurtherSource, data: DataConfig) -> str:
    if not is_local(source.source):
        return resolve_commit(source.source, source.revision, repo_type="dataset")
    path = _local_path(source)
    return f"sha256:{hash_folder(path) if path.is_dir() else _hash_table(source, data)}"


def _hash_table(source: FurtherSource, data: DataConfig) -> str:
    """SHA-256 over a table and the pictures it names; what else lies beside it does not count."""
    opened = _open_local(source)
    digest = hashlib.sha256(hash_file(_local_path(source)).encode())
    for row in opened.rows:
        for reference in read_pictures(row.cells, opened.columns, data.picture_separator):
            if isinstance(reference, str) and not is_address(reference):
                digest.update(_hash_named(opened.folders[0] / reference).encode())
    return digest.hexdigest()


def _hash_named(path: Path) -> str:
    try:
        return hash_file(path) if path.is_file() else "missing"
    except OSError as error:  # a name that is too long, a file that may not be read
        return f"unreadable {error.errno}"


def open_sources(data: DataConfig, version: str) -> Iterator[OpenSource]:
    """The sources one after the other, at the versions that `catalog_version` found.

    Raises:
        UserError: a source is not there, lacks a mapped column or cannot be read.
    """
    versions = version.split(JOINED)
    for number, source in enumerate(data.all_sources):
        if is_local(source.source):
            yield _open_local(source)
        else:
            yield _open_hub(source, versions[number])


# Local ----------------------------------------------------------------------------------------


def _local_path(source: SourceConfig) -> Path:
    path = Path(source.source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix in TABLE_SUFFIXES):
        return path
    kinds = ", ".join(TABLE_SUFFIXES)
    found = f"{path} is no table ({kinds})" if path.is_file() else f"no such catalog folder: {path}"
    raise UserError(
        f"{found}.",
        "Set data.source to a folder with pictures and a metadata.csv, to a table or to a Hub id.",
    )


def _open_local(source: FurtherSource) -> OpenSource:
    path = _local_path(source)
    table = path if path.is_file() else find_metadata(path, source.metadata)
    names, rows = read_table(table, source.encoding)
    columns = dict(source.columns or {})
    if columns[PICTURE] == PICTURE and PICTURE not in names and FILE_NAME in names:
        columns[PICTURE] = FILE_NAME
    require_columns(columns, names, str(table))
    return OpenSource((table.parent,), columns, rows)


def find_metadata(folder: Path, name: str | None = None) -> Path:
    """The table of a catalog folder.

    Args:
        name: its name, where the config gives one.

    Raises:
        UserError: there is none, or more than one to choose from.
    """
    if name:
        path = folder / name
        if path.is_file() and path.suffix in TABLE_SUFFIXES:
            return path
        raise UserError(f"{folder} holds no table {name}.", "Set data.metadata to one that it has.")
    found = [folder / each for each in METADATA_NAMES if (folder / each).is_file()]
    if len(found) == 1:
        return found[0]
    what = "several metadata files" if found else "no metadata file"
    raise UserError(
        f"{folder} holds {what}.",
        f"Exactly one of {', '.join(METADATA_NAMES)} is expected, or the name of another table "
        "in data.metadata.",
    )


# Hub ------------------------------------------------------------------------------------------


def _open_hub(source: FurtherSource, commit: str) -> OpenSource:
    from datasets import config, load_dataset
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    dataset = load_dataset(source.source, source.subset, split=source.split, revision=commit)
    columns = source.columns or {}
    require_columns(columns, dataset.column_names, f"the data set {source.source}")
    # What came with the data set lies here, unpacked archives in the second folder. Not the whole
    # cache: the access token and other data sets are in it too.
    repo = repo_folder_name(repo_id=source.source, repo_type="dataset")
    folders = (Path(constants.HF_HUB_CACHE) / repo, Path(config.DOWNLOADED_DATASETS_PATH))
    return OpenSource(folders, columns, _hub_rows(source.source, dataset))


def _hub_rows(name: str, dataset: Any) -> Iterator[SourceRow]:
    """Rows by way of Arrow: pictures stay the bytes they are, however deep they are nested."""
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=HUB_BATCH):
        for cells, broken in arrow_rows(table):
            number += 1
            yield SourceRow(f"{name} row {number}", cells, broken)
