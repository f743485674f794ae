"""Texts become plain without losing what belongs to them, and their language is told if sure."""

import csv
import random
import time
from pathlib import Path

import pytest

from vlmtune.catalog.languages import detect_language
from vlmtune.catalog.texts import clean_text

CATALOGS = Path(__file__).resolve().parents[4] / "shared" / "catalogs"
needs_catalogs = pytest.mark.skipif(
    not CATALOGS.is_dir(), reason="../shared/catalogs is not here: real catalogs are not shipped"
)


def codes(text: str) -> list[str]:
    """The codes of the repairs."""
    return [code for code, _ in clean_text(text).repairs]


def catalog_rows(name: str) -> list[dict[str, str]]:
    """The rows of a real catalog that have a description."""
    with (CATALOGS / name).open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["description"]]


# What stays -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A mug.",
        "5 < 6 > 4 and <3",
        "size <M>, <S> or <XL>",
        "R&D; Q&A &notme; &#; AT&T &amp no semicolon",
        "25 m² ½ ™ ﬁ Ⅳ",
        "two\nlines\n\n\n\nand\ta tab",
        "قميص قطني أزرق \u200fXL\u200f",
        "חולצת כותנה",
        "می\u200cخواهم",
        "这是一个漂亮的杯子。面霜　50ml",
        "คัพ เซรามิก",
        "family 👨\u200d👩\u200d👧\u200d👦 flag 🏳️\u200d🌈",
        "<p unclosed",
        "<!-- unclosed",
    ],
)
def test_plain_text_stays(text: str) -> None:
    """What is no HTML, no entity and no control character is not touched."""
    assert clean_text(text).text == text
    assert codes(text) == []


@pytest.mark.parametrize(
    ("text", "plain"),
    [("  a mug \n", "a mug"), ("a\r\nb\rc", "a\nb\nc"), ("300\xa0ml", "300 ml"), ("\xa0", "")],
)
def test_white_space_is_no_repair(text: str, plain: str) -> None:
    """Outer white space, line ends and no-break spaces are not worth a line in the ledger."""
    assert clean_text(text).text == plain
    assert codes(text) == []


# HTML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<p>one</p><p>two</p>", "one\ntwo"),
        ("<P CLASS=x>one<BR>two<br/><br />three</P>", "one\ntwo\n\nthree"),
        ("a <b>bold</b> mug", "a bold mug"),
        ("<ul>\n  <li>one</li>\n  <li>two</li>\n</ul>", "one\ntwo"),
        (
            "<table><tr><td>Weight</td><td>2 kg</td></tr><tr><td>x</td></tr></table>",
            "Weight 2 kg\nx",
        ),
        ("<b>a</b>\n\n\n\n\nb", "a\n\nb"),
        ("a<script>if (a<b) x('<p>')</script><style>p{}</style>b", "ab"),
        ("<!doctype html>a<!-- <p>hidden</p> -->b", "ab"),
        ("http://a.example/b.html<!-- x -->", "http://a.example/b.html"),
        ('<image src="/x.gif">Fish', "Fish"),
        ("<img alt='a > b'>c", "c"),
        ("<p title=don't>c</p>", "c"),
        ("<b>5 < 6</b>, size <M> & co", "5 < 6, size <M> & co"),
        ("<del><s>9</s></del> 8 <o:p></o:p>", "9 8"),
    ],
)
def test_html_becomes_text(text: str, plain: str) -> None:
    """Blocks become lines, scripts and comments go, what only looks like a tag stays."""
    cleaned = clean_text(text)
    assert cleaned.text == plain
    assert codes(text) == ["html_removed"]


def test_html_message_names_the_first_tags() -> None:
    """The tags found, each once, and how many more there are."""
    (repair,) = clean_text("<div><p>a</p><p>b</p><b>c</b><i>d</i><u>e</u></div>").repairs
    assert repair == ("html_removed", "HTML removed: <div>, <p>, <b>, <i> and 1 more")


# Entities -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("it&#39;s 5&nbsp;&euro; &#x2122;", "it's 5 € ™"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("&amp;amp;amp;", "&amp;"),
        ("5 &lt; 6 &gt; 4", "5 < 6 > 4"),
        ("a&#13;&#10;b", "a\nb"),
        ("&#x110000;&#9999999;", "\ufffd\ufffd"),
    ],
)
def test_entities_are_decoded(text: str, plain: str) -> None:
    """Once or twice escaped, named or numbered."""
    assert clean_text(text).text == plain
    assert codes(text) == ["entities_decoded"]


@pytest.mark.parametrize("escaped", ["&lt;p&gt;hi&lt;/p&gt;", "&amp;lt;p&amp;gt;hi"])
def test_escaped_html_is_removed(escaped: str) -> None:
    """Tags that appear by decoding go too."""
    assert clean_text(escaped).text == "hi"
    assert codes(escaped) == ["entities_decoded", "html_removed"]


# Characters -----------------------------------------------------------------------------------


def test_unicode_is_composed() -> None:
    """Letters with separate accents, as macOS writes them, become single characters."""
    assert clean_text("Cafe\u0301").text == "Café"
    assert codes("Cafe\u0301") == ["unicode_normalised"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\ufeffa mug", "a mug"),
        ("a\u200b m\u00adug\x00\x9f\x7f", "a mug"),
        ("a\ud800 mug", "a mug"),
        ("one\x0btwo\x85three", "one\ntwo\nthree"),
        ("Cafe\u200b\u0301", "Café"),
    ],
)
def test_invisible_characters_are_removed(text: str, plain: str) -> None:
    """Control characters, byte-order marks, lone surrogates; old line breaks become new ones."""
    assert clean_text(text).text == plain
    assert codes(text) == ["control_characters_removed"]


def test_invisible_characters_are_named() -> None:
    """By their code points, each once."""
    (repair,) = clean_text("a\x00b\x00c\u200b").repairs
    assert repair[1] == "invisible characters removed: U+0000, U+200B"


def test_repairs_are_in_order() -> None:
    """All rules on one text."""
    text = "\ufeff<p>Cafe\u0301 &amp; bar</p>"
    assert clean_text(text).text == "Café & bar"
    assert codes(text) == [
        "html_removed",
        "entities_decoded",
        "unicode_normalised",
        "control_characters_removed",
    ]


# Speed and hostile texts ----------------------------------------------------------------------


def test_plain_text_is_fast() -> None:
    """50,000 short texts take a moment (about 0.15 s measured)."""
    text = "A sturdy mug – 300 ml, dishwasher safe. " * 5
    started = time.process_time()
    for _ in range(50_000):
        clean_text(text)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "text",
    [
        "<" * 100_000,
        "<a" * 50_000,
        "<p " * 33_000,
        "<p>" + "<!--" * 25_000,
        "<p " + "a='" * 33_000,
        "<p '" * 12_000 + '<p "' * 12_000,
        "<div>" * 10_000,
        "<ul><li>" * 12_000,
        "<i>" + "<b>" * 16_000 + "</i>" * 12_000,
        "</p>" * 25_000,
        "<p>" + " " * 100_000 + "x",
        "<p>" + "\n" * 100_000 + "x",
        "&amp;" * 20_000,
        "&#" * 50_000,
        "&lt;div&gt;" * 10_000,
        "<p>&#" + "9" * 10_000 + ";<![CDATA[<?<![",
        "\x00" * 100_000,
        "e" + "\u0301" * 100_000,
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_hostile_text(text: str) -> None:
    """No stack overflow, no error, no quadratic time (0.4 s is the slowest measured, 1.1 s on a
    busy machine)."""
    started = time.process_time()
    clean_text(text)
    assert time.process_time() - started < 5


def test_any_text_is_taken() -> None:
    """Random mixtures of markup never raise, and hold no invisible character afterwards."""
    parts = ["<", ">", "</", "<p", "<b>", "<!--", "-->", "<![CDATA[", "<?", "&", "&#", "&amp;"]
    parts += ["script>", "<script>", "\x00", "\x1f", "\ud800", "é", " ", "\n", '"', "'", "9", ";"]
    chosen = random.Random(0)
    for _ in range(2000):
        text = "".join(chosen.choices(parts, k=30))
        plain = clean_text(text).text
        assert plain == plain.strip()
        assert not set(plain) & {"\x00", "\x1f", "\ud800"}, ascii(text)


@pytest.mark.catalogs
@needs_catalogs
def test_jpetstore_descriptions() -> None:
    """Each of them begins with a tag, which goes; the sentence stays whole."""
    for row in catalog_rows("jpetstore/metadata.csv"):
        cleaned = clean_text(row["description"])
        assert cleaned.text == row["description"].partition(">")[2]
        assert cleaned.repairs == [("html_removed", "HTML removed: <image>")]


@pytest.mark.catalogs
@needs_catalogs
@pytest.mark.parametrize("name", ["eshop", "spree"])
def test_clean_catalogs_are_not_repaired(name: str) -> None:
    """Descriptions without faults come back as they are."""
    for row in catalog_rows(f"{name}/metadata.csv"):
        assert clean_text(row["description"]).repairs == []


# Languages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("这是一个漂亮的杯子", "zh"),
        ("무료배송 도자기 머그컵 입니다", "ko"),
        ("美しいカップです", "ja"),
        ("Ein schöner Becher aus Keramik für den Kaffee am Morgen", "de"),
    ],
)
def test_language(text: str, language: str) -> None:
    """Told as ISO 639-1; a few CJK characters are enough."""
    assert detect_language(text) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Schöner Becher",
        "面霜",
        "SKU-12345 XL 100x200 mm 3.5 kg",
        "😀" * 30,
        "1 2 3" * 30,
        "asdkjh qwoeiu zxmcnb alskdj qpwoei",
        "Das ist für den Tee",  # sure enough, but of 15 letters
    ],
)
def test_unsure_language(text: str) -> None:
    """Short texts, codes and gibberish are in no language."""
    assert detect_language(text) == ""


def test_only_the_beginning_is_looked_at() -> None:
    """A long text costs no more than a short one, and its beginning decides."""
    german = "Ein schöner Becher aus Keramik für den Kaffee am Morgen. " * 20
    english = "A fine mug that holds the coffee you want in the morning. " * 2000
    assert detect_language(german + english) == "de"


@pytest.mark.catalogs
@needs_catalogs
def test_languages_of_the_catalogs() -> None:
    """Every description of whole sentences is in the language that it is said to be in."""
    rows = [
        ("en", row) for name in ("eshop", "spree") for row in catalog_rows(f"{name}/metadata.csv")
    ]
    rows += [(row["locale"], row) for row in catalog_rows("spree/metadata_de_fr.csv")]
    found = [(language, detect_language(row["description"])) for language, row in rows]
    assert len(found) == 101 + 37 + 74
    assert [pair for pair in found if pair[0] != pair[1]] == []


@pytest.mark.catalogs
@needs_catalogs
def test_short_texts_are_in_no_wrong_language() -> None:
    """Names and three-word descriptions are told rightly or not at all."""
    texts = [row["Product Name"] for row in catalog_rows("eshop/metadata.csv")]
    texts += [clean_text(row["description"]).text for row in catalog_rows("jpetstore/metadata.csv")]
    assert {detect_language(text) for text in texts} <= {"", "en"}
