"""What the columns of an unknown catalog probably mean, by their names and their first rows."""

from dataclasses import dataclass, field
from pathlib import Path

from vlmtune.catalog.encodings import find_encoding
from vlmtune.catalog.source import METADATA_NAMES, find_metadata
from vlmtune.catalog.starter.pictures import guess_pictures, pictures_of_cell
from vlmtune.catalog.starter.sample import Column, read_sample
from vlmtune.catalog.starter.texts import guess_texts
from vlmtune.catalog.tables import TABLE_SUFFIXES
from vlmtune.config.data import DESCRIPTION, PICTURE, Columns
from vlmtune.errors import UserError


@dataclass(frozen=True)
class CatalogGuess:
    """What a catalog's columns probably mean.

    Attributes:
        source: folder or table, as it was named.
        metadata: name of the table in the folder, where it has to be told.
        encoding: of the table.
        columns: field -> column or columns, as in `data.columns`.
        separator: what stands between several pictures in one cell; None if nothing does.
        most_pictures: of one row.
        sample: all columns, with their values in the first rows.
    """

    source: Path
    metadata: str | None
    encoding: str
    columns: Columns
    separator: str | None
    most_pictures: int
    sample: dict[str, Column] = field(repr=False)

    @property
    def picture_columns(self) -> list[str]:
        """The columns that hold pictures."""
        names = self.columns[PICTURE]
        return [names] if isinstance(names, str) else names

    def column_of(self, name: str) -> Column:
        """The column of a field; of several the first."""
        return self.sample[self.picture_columns[0] if name == PICTURE else str(self.columns[name])]

    @property
    def others(self) -> list[str]:
        """The columns that no field was guessed for."""
        used = {*self.picture_columns, *map(str, self.columns.values())}
        return [name for name in self.sample if name not in used]

    @property
    def described(self) -> list[int]:
        """Numbers of the sampled rows that have a description, from 0."""
        return [row for row, text in enumerate(self.column_of(DESCRIPTION).texts) if text]

    @property
    def incomplete(self) -> int:
        """How many of the sampled rows lack a picture or a text."""
        pictures = zip(*(self.sample[name].values for name in self.picture_columns), strict=True)
        texts = zip(*(self.column_of(n).texts for n in self.columns if n != PICTURE), strict=True)
        return sum(
            not (any(picture) and all(text)) for picture, text in zip(pictures, texts, strict=True)
        )


def guess_catalog(source: Path) -> CatalogGuess:
    """Look at the first 500 rows of a local catalog and guess what its columns mean.

    Args:
        source: a folder with a table, or a csv, tsv, jsonl or parquet table.

    Raises:
        UserError: there is no table, it cannot be read, or no column looks like pictures or like
            descriptions.
    """
    path = source.expanduser()
    table, metadata = _find_table(path)
    encoding = "utf-8" if table.suffix == ".parquet" else find_encoding(table)
    sample = read_sample(table, encoding)
    pictures, separator = guess_pictures(sample, table)
    texts = guess_texts(sample, pictures, table)
    counts = zip(*(sample[name].values for name in pictures), strict=True)
    most = max(sum(len(pictures_of_cell(value, separator)) for value in row) for row in counts)
    columns: Columns = {PICTURE: pictures if len(pictures) > 1 else pictures[0], **texts}
    return CatalogGuess(source, metadata, encoding, columns, separator, most, sample)


def _find_table(source: Path) -> tuple[Path, str | None]:
    """The table, and its name if the config has to tell it."""
    if source.is_file() and source.suffix in TABLE_SUFFIXES:
        return source, None
    if not source.is_dir():
        kinds = ", ".join(TABLE_SUFFIXES)
        raise UserError(
            f"{source} is no catalog here.", f"Name a folder that holds a table, or one ({kinds})."
        )
    tables = sorted(path for path in source.iterdir() if path.suffix in TABLE_SUFFIXES)
    if len(tables) == 1:
        name = tables[0].name
        return tables[0], None if name in METADATA_NAMES else name
    try:
        return find_metadata(source), None
    except UserError as error:
        if not tables:
            raise
        names = " or ".join(map(str, tables))
        raise UserError(error.problem, f"Name the table itself: {names}.") from None
