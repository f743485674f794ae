"""What the name of a column says about what it holds."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from vlmtune.errors import UserError

# Of names in several languages; the order does not matter.
PICTURE_HINTS = (
    "file name, filename, image, picture, photo, img, image url, thumbnail, bild, foto, abbildung, "
    "immagine, imagen, imagem, afbeelding, obraz, zdjęcie, obrázek, kuva, kép, изображение, 画像, "
    "写真, 图片, 이미지"
)
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
EXACT, LAST_WORD, PART, NOT = range(4)  # how close a column's name is to a hint


def closeness(name: str, hints: str) -> int:
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


def nothing_found(what: str, name: str, sample: Iterable[str], table: Path) -> UserError:
    """What to say where no column fits a field.

    Args:
        what: the field's values, as `pictures`.
        name: the field.
        sample: names of all columns.
        table: the catalog.
    """
    columns = ", ".join(map(repr, sample))
    return UserError(
        f"{table}: no column looks like {what} (it has {columns}).",
        f"Rename the right one to {name!r}, or write the config by hand and set "
        f"data.columns.{name} to it.",
    )
