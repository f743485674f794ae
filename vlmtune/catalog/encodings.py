"""The encoding of a text file that does not say it."""

import codecs
from pathlib import Path

from vlmtune.catalog.languages import detect_language
from vlmtune.errors import UserError

CHUNK = 1_000_000  # bytes

# What spreadsheets and shops write where it is no Unicode.
ENCODINGS = [
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258"),
    *("cp874", "cp932", "cp949", "gb18030", "big5", "euc_jp", "koi8_r"),
]
WESTERN = ("da", "de", "en", "es", "fi", "fr", "is", "it", "nb", "nl", "nn", "no", "pt", "sv")


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
