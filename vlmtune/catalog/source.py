"""Reading a catalog: a local folder with metadata.csv / .jsonl / .parquet, or a Hub data set.

Pictures are handed on as the bytes they are; each one is decoded once here, to be sure that it
can be, and forgotten again. So memory stays flat however large the catalog is.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.pictures import BrokenPicture, decode_picture
from vlmtune.config.data import DESCRIPTION, PICTURE, DataConfig
from vlmtune.errors import UserError
from vlmtune.revision import hash_folder, is_local, resolve_commit

if TYPE_CHECKING:
    import pandas

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
PROBLEMS_SHOWN = 10
CHECK_SIDE = 64  # pixels; JPEGs are decoded at a reduced size when they are only checked


def catalog_version(data: DataConfig) -> str:
    """What identifies the catalog's present content, without decoding a picture.

    Returns:
        `sha256:...` over names and contents of all files of a local folder, or the commit of a
        Hub data set.

    Raises:
        UserError: no such folder, or the Hub cannot be asked.
    """
    if is_local(data.source):
        return f"sha256:{hash_folder(_catalog_folder(data.source))}"
    return _hub_commit(data)


def load_catalog(data: DataConfig, version: str) -> Catalog:
    """Read all rows of the catalog into an Arrow table on disk.

    Raises:
        UserError: names the rows that cannot be used, what was expected and how to mend it.
    """
    rows = _folder_rows(data) if is_local(data.source) else _hub_rows(data, version)
    checked = _CheckedRows(rows, data)
    scratch = tempfile.TemporaryDirectory(prefix="vlmtune-catalog-")
    dataset = _write_arrow(checked, data, scratch.name)
    checked.raise_problems()
    return Catalog(rows=dataset, source=data.source, version=version, scratch=scratch)


def _write_arrow(rows: Iterable[dict[str, Any]], data: DataConfig, folder: str) -> Any:
    from datasets import Dataset, Features, Image, Value
    from datasets.arrow_writer import ArrowWriter

    fields = {field: Value("string") for field in data.columns if field != PICTURE}
    features = Features({ROW_ID: Value("string"), PICTURE: Image(decode=False), **fields})
    path = f"{folder}/rows.arrow"
    with ArrowWriter(path=path, features=features, writer_batch_size=100) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    return Dataset.from_file(path)


class _CheckedRows:
    """Rows with an id each; what is wrong with a row is collected, to be told all at once."""

    def __init__(self, rows: Iterable[dict[str, Any]], data: DataConfig) -> None:
        self.rows = rows
        self.data = data
        self.problems: list[str] = []
        self.count = 0
        self._seen: dict[str, int] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.rows, 1):
            if self.data.max_rows is not None and number > self.data.max_rows:
                break
            self.count += 1
            problem = _problem_of(row, self.data)
            if problem:
                self.problems.append(f"row {number}: {problem}")
            else:
                yield {ROW_ID: self._row_id(row), **row}

    def _row_id(self, row: dict[str, Any]) -> str:
        """16 hex digits from picture and fields (not the description: that may be edited)."""
        digest = hashlib.sha256(row[PICTURE]["bytes"])
        for field in sorted(self.data.columns):
            if field not in (PICTURE, DESCRIPTION):
                digest.update(f"\0{field}={row[field]}".encode())
        row_id = digest.hexdigest()[:16]
        again = self._seen[row_id] = self._seen.get(row_id, 0) + 1
        return row_id if again == 1 else f"{row_id}-{again}"

    def raise_problems(self) -> None:
        """Raise what was found, if anything was."""
        if self.count == 0:
            raise UserError(
                f"the catalog {self.data.source} is empty.", "Add rows to its metadata file."
            )
        if not self.problems:
            return
        shown = "\n  ".join(self.problems[:PROBLEMS_SHOWN])
        more = len(self.problems) - PROBLEMS_SHOWN
        rest = f"\n  and {more} more" if more > 0 else ""
        raise UserError(
            f"{len(self.problems)} of {self.count} rows of {self.data.source} cannot be used:"
            f"\n  {shown}{rest}\n",
            "Mend or remove these rows; no row is dropped silently.",
        )


def _problem_of(row: dict[str, Any], data: DataConfig) -> str | None:
    """What is wrong with a row, or None."""
    if "problem" in row:
        return row["problem"]
    for field, column in data.columns.items():
        if field != PICTURE and not row[field].strip():
            return f"the column {column!r} is empty, text is expected"
    try:
        decode_picture(row[PICTURE]["bytes"], longest_side=CHECK_SIDE)
    except BrokenPicture as error:
        return f"picture {row[PICTURE]['path']}: {error}"
    return None


def _require_columns(columns: dict[str, str], found: list[str], where: str) -> None:
    for field, column in columns.items():
        if column not in found:
            raise UserError(
                f"{where} has no column {column!r}, which data.columns.{field} names "
                f"(it has {', '.join(map(repr, found))}).",
                f"Set data.columns.{field} to one of these.",
            )


# Local folder ---------------------------------------------------------------------------------


def _catalog_folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"no such catalog folder: {folder.resolve()}.",
            "Set data.source to a folder with pictures and a metadata.csv, or to a Hub id.",
        )
    return folder


def _read_metadata(folder: Path) -> "pandas.DataFrame":
    """The metadata table, every cell a string, empty cells the empty string."""
    import pandas

    found = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if len(found) != 1:
        names = ", ".join(METADATA_NAMES)
        what = "several metadata files" if found else "no metadata file"
        raise UserError(f"{folder} holds {what}.", f"Exactly one of {names} is expected.")
    path = found[0]
    try:
        if path.suffix == ".csv":
            table = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        elif path.suffix == ".jsonl":
            table = pandas.read_json(path, lines=True, dtype=False, encoding="utf-8-sig")
        else:
            table = pandas.read_parquet(path)
    except pandas.errors.EmptyDataError:
        raise UserError(f"the catalog {path} is empty.", "Add a header line and rows.") from None
    except (ValueError, OSError) as error:
        raise UserError(
            f"cannot read {path}: {error}.", "A UTF-8 file with one row a line is expected."
        ) from error
    if table.empty and not len(table.columns):
        raise UserError(f"the catalog {path} is empty.", "Add a row a line.")
    return table


def _folder_rows(data: DataConfig) -> Iterator[dict[str, Any]]:
    folder = _catalog_folder(data.source)
    table = _read_metadata(folder)
    columns = dict(data.columns)
    if columns[PICTURE] == PICTURE and PICTURE not in table and "file_name" in table:
        columns[PICTURE] = "file_name"  # the imagefolder convention's name for the same thing
    _require_columns(columns, list(table.columns), str(folder))
    picked = {field: table[column].tolist() for field, column in columns.items()}
    for values in zip(*picked.values(), strict=True):
        cells = dict(zip(picked, values, strict=True))
        row: dict[str, Any] = {field: _as_text(value) for field, value in cells.items()}
        _set_picture(row, folder, row[PICTURE])
        yield row


def _as_text(value: Any) -> str:
    """A cell as text; missing values of any reader are the empty string."""
    import pandas

    return "" if pandas.isna(value) is True else str(value)  # of a list it tells cell by cell


def _set_picture(row: dict[str, Any], folder: Path, file_name: str | None) -> None:
    """Give the row its picture's bytes, or a problem that says why there are none."""
    try:
        row[PICTURE] = _read_picture(folder, file_name or "")
    except (OSError, ValueError, RuntimeError) as error:  # the last: a link to itself
        row["problem"] = str(error)


def _read_picture(folder: Path, file_name: str) -> dict[str, Any]:
    """The picture's bytes. A name that leads out of the folder is refused, links included."""
    if not file_name:
        raise ValueError("no picture is named")
    path = (folder / file_name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"picture {file_name!r} lies outside the catalog's folder")
    if not path.is_file():
        raise ValueError(f"picture {file_name!r} does not exist")
    return {"bytes": path.read_bytes(), "path": file_name}


# Hub ------------------------------------------------------------------------------------------


def _hub_commit(data: DataConfig) -> str:
    return resolve_commit(data.source, data.revision, repo_type="dataset")


def _hub_rows(data: DataConfig, commit: str) -> Iterator[dict[str, Any]]:
    from datasets import Image, config, load_dataset

    dataset = load_dataset(data.source, data.subset, split=data.split, revision=commit)
    _require_columns(data.columns, dataset.column_names, f"the data set {data.source}")
    picture_column = data.columns[PICTURE]
    dataset = dataset.cast_column(picture_column, Image(decode=False))
    for source_row in dataset:
        row: dict[str, Any] = {
            field: _as_text(source_row[column]) for field, column in data.columns.items()
        }
        picture = source_row[picture_column] or {"bytes": None, "path": ""}
        if picture["bytes"] is None:
            # A file that came with the data set lies in the cache; any other path is not its own.
            cache = Path(config.HF_CACHE_HOME)
            _set_picture(row, cache, picture["path"])
        else:
            row[PICTURE] = picture
        yield row
