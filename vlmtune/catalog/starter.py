"""What the columns of an unknown catalog probably mean, by their names and their first rows."""

import codecs
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from vlmtune.catalog.downloads import is_address
from vlmtune.catalog.languages import detect_language
from vlmtune.catalog.source import METADATA_NAMES, find_metadata
from vlmtune.catalog.tables import TABLE_SUFFIXES, read_table
from vlmtune.catalog.texts import clean_text
from vlmtune.config.data import DESCRIPTION, PICTURE, Columns
from vlmtune.errors import UserError

ROWS = 500  # so many are looked at
PATHS = 20  # so many paths of a column are looked for on the disk
CHUNK = 1_000_000  # bytes
DEEPEST, LONGEST_LIST = 8, 10  # of nested values
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".avif", ".tif", ".tiff", ".bmp"),
    *(".jp2", ".ico", ".psd", ".tga"),
)
SEPARATORS = ("|", ";", ", ", ",")

# What spreadsheets and shops write where it is no Unicode.
ENCODINGS = [
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258"),
    *("cp874", "cp932", "cp949", "gb18030", "big5", "euc_jp", "koi8_r"),
]
WESTERN = ("da", "de", "en", "es", "fi", "fr", "is", "it", "nb", "nl", "nn", "no", "pt", "sv")

# Of names in several languages; the order does not matter.
PICTURE_HINTS = (
    "file name, filename, image, picture, photo, img, image url, thumbnail, bild, foto, abbildung, "
    "immagine, imagen, imagem, afbeelding, obraz, zdjęcie, obrázek, kuva, kép, изображение, 画像, "
    "写真, 图片, 이미지"
)
SMALL_PICTURES = ("thumb", "icon", "logo", "swatch", "vorschau")
DESCRIPTION_HINTS = (
    "description, beschreibung, desc, descripción, descrição, descrizione, beschrijving, "
    "omschrijving, beskrivning, beskrivelse, opis, popis, leírás, описание, 説明, 商品説明, 描述, "
    "설명, body, body html, text, details, caption, copy"
)
NAME_HINTS = (
    "name, product name, title, product, item, titel, produkt, bezeichnung, artikel, nombre, "
    "producto, nom, titre, produit, nome, titolo, título, prodotto, produto, naam, nazwa, název, "
    "namn, navn, название, наименование, 商品名, 名前, 品名, 名称, 商品名称, 상품명"
)
CATEGORY_HINTS = (
    "category, type, department, kategorie, warengruppe, produktgruppe, rubrik, abteilung, "
    "catégorie, rayon, categoría, categoria, tipo, reparto, categorie, kategoria, kategori, "
    "категория, カテゴリ, カテゴリー, 类别, 分类, 카테고리"
)
BRAND_HINTS = (
    "brand, marke, marque, marca, merk, märke, marka, značka, manufacturer, hersteller, vendor, "
    "fabricant, fabricante, produttore, бренд, ブランド, 品牌, 브랜드"
)
NAMED_HINTS = (PICTURE_HINTS, CATEGORY_HINTS, BRAND_HINTS)  # a brand's name is no product's
EXACT, LAST_WORD, PART, NOT = range(4)  # how close a column's name is to a hint

SHORTEST_DESCRIPTION, SHORTEST_UNNAMED = 12, 40  # mean characters, with a telling name and without
LONGEST_NAME, LONGEST_CATEGORY = 150, 80  # mean characters
FEW_VALUES = 20  # a column of no more counts as few, however short the table is
MOST = 0.9


@dataclass(frozen=True)
class Column:
    """A column of the catalog, or a nested value by its dotted name.

    Attributes:
        values: one for each row; None where there is none. Of bytes only the first few.
    """

    name: str
    values: list[Any]

    @cached_property
    def found(self) -> list[Any]:
        """The values that are there."""
        return [value for value in self.values if value is not None]

    @cached_property
    def texts(self) -> list[str]:
        """One text for each row, cleaned as a run cleans it; empty where there is none."""
        plain = (value if _is_scalar(value) else "" for value in self.values)
        return [clean_text(str(value)).text for value in plain]

    @cached_property
    def filled(self) -> list[str]:
        """The texts that are not empty."""
        return [text for text in self.texts if text]

    @property
    def mean_length(self) -> float:
        """Of the texts that are there, in characters."""
        return sum(map(len, self.filled)) / max(1, len(self.filled))


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
    sample = _read_sample(table, encoding)
    pictures, separator = _guess_pictures(sample, table)
    texts = _guess_texts(sample, pictures, table)
    counts = zip(*(sample[name].values for name in pictures), strict=True)
    most = max(sum(len(_parts(value, separator)) for value in row) for row in counts)
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


def find_encoding(table: Path) -> str:
    """The encoding of a text file: UTF-8 if all of it is, or else the likeliest one.

    Raises:
        UserError: it is no text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with table.open("rb") as file:
        last = b""
        while True:
            chunk = file.read(CHUNK)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError:
                return _likeliest_encoding(chunk or last, table)
            if not chunk:
                return "utf-8"
            last = chunk


def _likeliest_encoding(data: bytes, table: Path) -> str:
    from charset_normalizer import from_bytes

    is_wide = b"\0" in data  # UTF-16 or UTF-32: every byte counts
    # Among much plain ASCII the guess goes wrong, so the lines with other letters must do.
    tell = data if is_wide else b"\n".join(x for x in data.splitlines() if not x.isascii())
    best = from_bytes(tell, cp_isolation=None if is_wide else ENCODINGS).best()
    if best is None:
        raise UserError(f"{table} is no text in any known encoding.", "Save it as UTF-8.")
    return "cp1252" if _is_western(tell, best.could_be_from_charset) else best.encoding


def _is_western(data: bytes, encodings: list[str]) -> bool:
    """Whether cp1252 gives the same text as the best guess, or one in a language it is made for.

    The guess alone takes French and Spanish for cp1250, which has an r where they have an a.
    """
    if "cp1252" in encodings:
        return True
    is_near = any(encoding.startswith("cp125") for encoding in encodings)
    return is_near and detect_language(data.decode("cp1252", "replace")) in WESTERN


# The sample -----------------------------------------------------------------------------------


def _read_sample(table: Path, encoding: str) -> dict[str, Column]:
    _, rows = read_table(table, encoding)
    whole = (dict(_flatten(row.cells)) for row in rows if not row.broken)
    sampled = list(islice(whole, ROWS))
    if not sampled:
        raise UserError(f"{table} holds no row that can be read.", "Add rows, or mend them.")
    names = dict.fromkeys(name for row in sampled for name in row)
    columns = [Column(name, [row.get(name) for row in sampled]) for name in names]
    parents = {name[:at] for name in names for at, sign in enumerate(name) if sign == "."}
    # A nested value that some rows lack stands there, empty, by its own name too.
    return {each.name: each for each in columns if each.found or each.name not in parents}


def _flatten(cells: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names, dotted where nested, and values."""
    for key, value in cells.items():
        name = f"{prefix}{key}"
        nested = value
        if isinstance(value, list) and any(map(_is_nested, value)):
            nested = {str(number): each for number, each in enumerate(value[:LONGEST_LIST])}
        if _is_nested(nested) and name.count(".") < DEEPEST:
            yield from _flatten(nested, f"{name}.")
        else:
            yield name, None if _is_missing(value) else _light(value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and not _is_embedded(value)


def _is_embedded(value: Any) -> bool:
    """Whether a value is a picture as Hugging Face has it: bytes, or else a path."""
    return isinstance(value, Mapping) and bool(value) and set(value) <= {"bytes", "path"}


def _is_missing(value: Any) -> bool:
    return value is None or value in ([], {}) or value != value or not str(value).strip()


def _light(value: Any) -> Any:
    """A value without the bulk of the pictures in it."""
    if isinstance(value, bytes):
        return value[:16]
    if isinstance(value, list):
        return [_light(each) for each in value]
    return {k: _light(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _is_scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, bytes | list | Mapping)


# Pictures -------------------------------------------------------------------------------------


def _guess_pictures(sample: dict[str, Column], table: Path) -> tuple[list[str], str | None]:
    """The columns that hold pictures, and what separates several in a cell."""
    candidates = [column for column in sample.values() if _holds_pictures(column)]
    if not candidates:
        raise _nothing_found("pictures", PICTURE, sample, table)
    best = min(candidates, key=lambda column: _picture_rank(column, table.parent))
    looks_right = {column.name for column in candidates}
    family = [
        column.name
        for column in sample.values()
        if _without_number(column.name) == _without_number(best.name)
        and (column.name in looks_right or not column.found)
    ]
    return sorted(family, key=_natural_order), _guess_separator(best)


def _holds_pictures(column: Column) -> bool:
    is_named = _closeness(column.name, PICTURE_HINTS) < NOT
    pictures = sum(_is_picture(value, is_named) for value in column.found)
    return pictures * 2 > len(column.found)


def _is_picture(value: Any, is_named: bool) -> bool:
    if isinstance(value, list):
        return all(_is_picture(each, is_named) for each in value)
    if isinstance(value, bytes) or _is_embedded(value):
        return True
    return isinstance(value, str) and (_names_picture(value) or (is_named and is_address(value)))


def _names_picture(text: str) -> bool:
    text = text.strip().casefold()
    return text.endswith(SUFFIXES) or (
        is_address(text) and re.split("[?#]", text)[0].endswith(SUFFIXES)
    )


def _picture_rank(column: Column, root: Path) -> tuple[bool, int, int]:
    """The smaller, the likelier: no thumbnails, what is at hand before what is elsewhere."""
    is_small = any(word in column.name.casefold() for word in SMALL_PICTURES)
    place = min(_distance(value, root) for value in column.found[:PATHS])
    return is_small, place, _closeness(column.name, PICTURE_HINTS)


def _distance(value: Any, root: Path) -> int:
    """0: embedded or on the disk, 1: an address, 2: a path that leads nowhere."""
    if isinstance(value, list):
        return min(_distance(each, root) for each in value)
    if not isinstance(value, str):
        return 0
    if is_address(value):
        return 1
    paths = (part.strip() for sign in SEPARATORS for part in value.split(sign))
    return 0 if any(os.path.isfile(root / path) for path in paths) else 2


def _without_number(name: str) -> str:
    return re.sub(r"[\s_.-]*\d+", "", name).casefold()


def _natural_order(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _guess_separator(column: Column) -> str | None:
    """The one that makes the most pictures of the cells, if all that it makes are pictures."""
    cells = [v for v in column.found if isinstance(v, str) and _is_picture(v, is_named=True)]
    counts = {
        sign: sum(len(_parts(cell, sign)) for cell in cells)
        for sign in SEPARATORS
        if all(_are_of_one_kind(_parts(cell, sign)) for cell in cells)
    }
    best = max(counts, key=lambda sign: counts[sign], default=None)
    return best if best and counts[best] > len(cells) else None


def _are_of_one_kind(parts: list[str]) -> bool:
    """All addresses, which may hold a separator themselves, or all paths."""
    addresses = sum(map(is_address, parts))
    return addresses == len(parts) or (addresses == 0 and all(map(_names_picture, parts)))


def _parts(value: Any, separator: str | None) -> list[Any]:
    """The pictures of a cell."""
    if value is None or isinstance(value, list):
        return value or []
    if not isinstance(value, str) or not separator:
        return [value]
    return [part.strip() for part in value.split(separator) if part.strip()]


# Texts ----------------------------------------------------------------------------------------


def _guess_texts(sample: dict[str, Column], pictures: list[str], table: Path) -> dict[str, str]:
    """Field -> column, for all fields but the picture."""
    others = [column for name, column in sample.items() if name not in pictures]
    texts = [column for column in others if _holds_text(column)]
    description = _guess_description(texts)
    if description is None:
        raise _nothing_found("descriptions", DESCRIPTION, sample, table)
    rows = [row for row, text in enumerate(description.texts) if text]
    texts.remove(description)
    found: dict[str, Column | None] = {}
    found["category"] = _closest(texts, CATEGORY_HINTS, lambda column: _is_category(column, rows))
    found["brand"] = _closest(texts, BRAND_HINTS, lambda column: _is_in_most(column, rows))
    rest = [column for column in texts if column not in found.values()]
    found["name"] = _closest(rest, NAME_HINTS, _is_name)
    order = {name: found[name] for name in ("name", "category", "brand")}
    guessed = {name: column.name for name, column in order.items() if column}
    return guessed | {DESCRIPTION: description.name}


def _holds_text(column: Column) -> bool:
    """Whether most values are words: no numbers, addresses, paths or lists."""
    words = [text for text in column.filled if re.search(r"[^\W\d_]", text)]
    plain = [text for text in words if not is_address(text) and not _names_picture(text)]
    return len(plain) * 2 > len(column.found)


def _guess_description(texts: list[Column]) -> Column | None:
    named = [
        column
        for column in texts
        if _closeness(column.name, DESCRIPTION_HINTS) < NOT
        and column.mean_length >= SHORTEST_DESCRIPTION
    ]
    unnamed = [column for column in texts if _reads_as_description(column)]
    return max(named or unnamed, key=_description_weight, default=None)


def _description_weight(column: Column) -> float:
    is_exact = _closeness(column.name, DESCRIPTION_HINTS) == EXACT
    return column.mean_length * (2 if is_exact else 1)


def _reads_as_description(column: Column) -> bool:
    """Long texts that differ, in words: no keys or digests."""
    is_varied = len(set(column.filled)) * 2 > len(column.filled)
    sentences = [text for text in column.filled if " " in text or not text.isascii()]
    is_long = column.mean_length >= SHORTEST_UNNAMED
    return is_long and is_varied and len(sentences) * 2 > len(column.filled)


def _is_category(column: Column, rows: list[int]) -> bool:
    values = [column.texts[row] for row in rows if column.texts[row]]
    few = max(FEW_VALUES, len(values) / 2)
    return 0 < len(set(values)) <= few and column.mean_length <= LONGEST_CATEGORY


def _is_in_most(column: Column, rows: list[int]) -> bool:
    return sum(bool(column.texts[row]) for row in rows) >= MOST * len(rows)


def _is_name(column: Column) -> bool:
    is_about_another = any(_closeness(column.name, hints) < NOT for hints in NAMED_HINTS)
    is_exact = _closeness(column.name, NAME_HINTS) == EXACT
    is_varied = len(set(column.filled)) * 2 > len(column.filled)
    return column.mean_length <= LONGEST_NAME and not is_about_another and (is_exact or is_varied)


def _closest(columns: list[Column], hints: str, is_fit: Callable[[Column], bool]) -> Column | None:
    """The column whose name is closest to a hint; of equal ones that with the most values."""
    fit = [c for c in columns if _closeness(c.name, hints) < NOT and is_fit(c)]
    return min(fit, key=lambda c: (_closeness(c.name, hints), -len(set(c.filled))), default=None)


def _closeness(name: str, hints: str) -> int:
    """How close a column's name is to one of the hints; the smaller, the closer."""
    known = {" ".join(_words(hint)) for hint in hints.split(", ")}
    words = _words(name)
    if " ".join(words) in known:
        return EXACT
    if words and words[-1] in known:
        return LAST_WORD
    long = tuple(hint for hint in known if len(hint) >= 4)
    return PART if any(w.startswith(long) or w.endswith(long) for w in words) else NOT


def _words(name: str) -> list[str]:
    """The words of a name in snake_case, camelCase or plain writing, without accents."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    letters = unicodedata.normalize("NFKD", spaced.casefold())
    plain = "".join(sign for sign in letters if not unicodedata.combining(sign))
    return re.findall(r"[^\W_]+", plain)


def _nothing_found(what: str, name: str, sample: Iterable[str], table: Path) -> UserError:
    columns = ", ".join(map(repr, sample))
    return UserError(
        f"{table}: no column looks like {what} (it has {columns}).",
        f"Rename the right one to {name!r}, or write the config by hand and set "
        f"data.columns.{name} to it.",
    )
