"""The two pages about a catalog: they agree with the ledger, and are safe, whole and small."""

import base64
import io
import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from PIL import Image

from vlmtune.catalog.catalog import Catalog, catalog_features
from vlmtune.catalog.changes import CatalogChanges, compare_catalogs
from vlmtune.catalog.ledger import (
    Decision,
    LedgerLine,
    PictureLine,
    Reason,
    RowLedger,
    ledger_features,
)
from vlmtune.catalog.report.data_report import render_data_report
from vlmtune.catalog.report.ledger_page import render_ledger_page
from vlmtune.catalog.report.reasons import MEANINGS, reason_meaning
from vlmtune.config.data import DataConfig

HOSTILE = (
    "</title></style><script>alert('x')</script><img src=\"http://evil.example/a.png\" onerror=x>"
)
DATA = DataConfig(
    source="shop",
    columns={"image": "i", "name": "n", "category": "c", "description": "d"},
    held_out={"by": "name"},
)
FIELDS = ["name", "category", "description"]
Shop = tuple[Catalog, RowLedger]


class Page(HTMLParser):
    """What a browser would make of a page: its tags, and its text without the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def jpeg(seed: int = 0, size: tuple[int, int] = (120, 90)) -> bytes:
    """Noise, the hardest picture to make small."""
    noise = random.Random(seed).randbytes(size[0] * size[1] * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", size, noise).save(buffer, "JPEG")
    return buffer.getvalue()


def line(number: int, **changes: Any) -> LedgerLine:
    """A kept row of the ledger."""
    values = {
        "line": number,
        "place": f"shop/metadata.csv row {number}",
        "row_id": f"id-{number:05d}",
        "label": f"Mug {number}",
        "decision": Decision.KEPT,
        "pictures": [PictureLine("a.jpg", f"{number:064x}", "", "", 120, 90, 112, 84, 12)],
        "text_hash": f"{number:016x}",
        "language": "en",
        "characters": 100 + number,
        "tokens": 200 + number,
        "group": f"Mug {number}",
        "side": "train",
    }
    return LedgerLine(**values | changes)


def quarantined(number: int, *codes: str, **changes: Any) -> LedgerLine:
    """A quarantined row of the ledger."""
    reasons = [Reason(code, f"message of {code}", "description") for code in codes]
    early = {"pictures": [], "text_hash": "", "language": "", "tokens": 0, "group": "", "side": ""}
    decision = {"decision": Decision.QUARANTINED, "reasons": reasons}
    return line(number, **early | decision | changes)


def duplicate(number: int, of: int) -> LedgerLine:
    """A row of the ledger that is a copy of another one."""
    reasons = [Reason("exact_copy", f"those of shop/metadata.csv row {of}")]
    decision = {"decision": Decision.DUPLICATE, "reasons": reasons, "copy_of": f"id-{of:05d}"}
    return line(number, **decision, group="", side="")


def shop_of(
    lines: list[LedgerLine],
    quarantine: Path = Path("none"),
    pictures: Callable[[int], list[bytes]] = lambda number: [PICTURE],
    **fields: Any,
) -> Shop:
    """A catalog with these lines; `fields` are texts of all rows, or functions of the line."""
    kept = [each for each in lines if each.decision.in_catalog]
    texts = {"name": lambda each: each.label, "category": lambda each: f"Sort {each.line % 3}"}
    texts |= {"description": lambda each: f"This is {each.label}."} | fields
    columns: dict[str, list[Any]] = {
        name: [make(each) if callable(make) else make for each in kept]
        for name, make in texts.items()
    }
    columns["row_id"] = [each.row_id for each in kept]
    columns["images"] = [
        [{"bytes": data, "path": None} for data in pictures(each.line)] for each in kept
    ]
    rows = Dataset.from_dict(columns, features=catalog_features(FIELDS))
    records = [each.record() for each in lines]
    table = {name: [each[name] for each in records] for name in ledger_features()}
    ledger = RowLedger(Dataset.from_dict(table, features=ledger_features()), quarantine)
    return Catalog(rows, "shop", "v1"), ledger


PICTURE = jpeg()
MIXED = [
    line(1),
    line(2, decision=Decision.REPAIRED, reasons=[Reason("html_removed", "HTML removed: <p>")]),
    quarantined(3, "missing_text"),
    quarantined(4, "missing_text", "picture_not_found"),
    line(5, side="held_out", carried=True, language="de"),
    duplicate(6, of=2),
]


def report(shop: Shop, changes: CatalogChanges | None = None, title: str = "Autumn") -> str:
    """The data report of a shop."""
    return render_data_report(*shop, DATA, changes, title)


def figures(html: str) -> list[str]:
    """The large numbers of the tiles."""
    return re.findall(r'<p class="figure[^"]*">([\d,]+)</p>', html)


def table_rows(html: str) -> list[str]:
    """Each row of the page's tables as text."""
    return [Page(row).text for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL)]


def test_warnings_stand_on_top() -> None:
    """What would keep a model back, before anything is trained."""
    shop = shop_of(MIXED)
    page = Page(render_data_report(*shop, DATA, None, "Autumn", {"gate.min_groups": "few <b>"}))
    assert "gate.min_groups: few <b>" in page.text
    assert "gate.min_groups" not in Page(report(shop)).text


def test_counts_agree_with_the_ledger() -> None:
    """The tiles say what the ledger says, and sum up."""
    shop = shop_of(MIXED)
    counts = shop[1].counts
    html = report(shop)
    numbers = [int(each) for each in figures(html)]
    assert numbers == [counts[name] for name in ("rows_read", *Decision)]
    assert numbers[0] == sum(numbers[1:]) == 6
    text = Page(html).text
    assert "Of 6 rows in the catalog, 3 can be trained on; 2 are set aside in quarantine" in text
    assert "each with its reasons; 1 is an exact copy of another row and counts once." in text


def test_reasons_agree_with_the_ledger() -> None:
    """Each reason in plain words with its rows, and with rows that have it."""
    shop = shop_of(MIXED)
    rows = table_rows(report(shop))[1:]
    assert rows == [
        "A text is missing 2 – – Mug 3 , Mug 4",
        "The row is an exact copy of another and counts once – – 1 Mug 6",
        "HTML was removed from a text – 1 – Mug 2",
        "A picture file is not there 1 – – Mug 4",
    ]
    assert len(rows) == len(shop[1].reason_counts)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (0, "Training may go on. 0.0% of the rows are quarantined"),
        (
            1,
            "Training may go on. 5.0% of the rows are quarantined; data.max_quarantine allows 5.0%",
        ),
        (2, "Training stops here. 10.0% of the rows are quarantined"),
        (20, "Training stops here. No row is left to train on."),
    ],
)
def test_whether_training_may_go_on(bad: int, said: str) -> None:
    """As `RowLedger.require_acceptable` decides it."""
    lines = [quarantined(n, "ragged_row") if n <= bad else line(n) for n in range(1, 21)]
    assert said in Page(report(shop_of(lines))).text


def test_split_languages_and_categories() -> None:
    """How the rows are spread."""
    text = Page(report(shop_of(MIXED))).text
    assert "Training 2 Held out 1" in text
    assert "0 training and 1 held-out row keep the side" in text
    assert "Language of the description en 2 de 1" in text
    assert "Rows by category Sort 2 2 Sort 1 1" in text


def test_categories_sum_up() -> None:
    """The twenty largest and all others together."""
    lines = [line(number) for number in range(1, 61)]
    shop = shop_of(lines, category=lambda each: f"c{each.line % 30}")
    section = report(shop).partition("Rows by")[2].partition("</div></div>")[0]
    numbers = re.findall(r'bar-value">(\d+)<', section.partition("<h3>")[0])
    assert "(10 others)" in section
    assert (len(numbers), sum(map(int, numbers))) == (21, 60)


def test_shared_names_and_pictures() -> None:
    """Names of several rows are counted; groups of several names are shown by their pictures."""
    lines = [
        line(1, label="Mug", group="Mug"),
        line(2, label="mug ", group="Mug"),
        line(3, label="Red", group="Red"),
        line(4, label="Blue", group="Red"),
        line(5, label="Green", group="Red"),
        line(6, label="Alone", group="Alone"),
    ]
    text = Page(report(shop_of(lines))).text
    assert "1 value of name is shared by 2 rows: Mug 2 rows" in text
    assert "Held together by an image or a description that they share 1 group of 3 rows" in text
    assert "3 rows Red Blue Green" in text


def test_longest_rows_and_smallest_pictures() -> None:
    """The extremes come first."""
    lines = [
        line(n, tokens=n * 10, pictures=[PictureLine(width=n, height=500)]) for n in range(1, 31)
    ]
    text = Page(report(shop_of(lines))).text
    assert re.findall(r"Mug (\d+)", text.partition("Longest for the model")[2])[:3] == [
        "30",
        "29",
        "28",
    ]
    assert re.findall(r"Mug (\d+)", text.partition("Smallest pictures")[2])[:2] == ["1", "2"]


def test_histograms_hold_all_rows() -> None:
    """The bars of each histogram sum up to the rows."""
    shop = shop_of([line(number) for number in range(1, 41)])
    drawings = re.findall(r"<svg.*?</svg>", report(shop), re.DOTALL)
    bars = [re.findall(r"<title>.*?: (\d+)</title>", drawing) for drawing in drawings]
    assert [sum(map(int, each)) for each in bars] == [40, 40, 40]


def test_quarantined_rows_have_pictures_and_advice(tmp_path: Path) -> None:
    """From the quarantine folder, and never from outside it."""
    (tmp_path / "q" / "pictures").mkdir(parents=True)
    (tmp_path / "q" / "pictures" / "1.jpg").write_bytes(PICTURE)
    (tmp_path / "q" / "pictures" / "2.jpg").write_bytes(b"broken")
    (tmp_path / "secret.jpg").write_bytes(PICTURE)
    paths = ["pictures/1.jpg", "pictures/2.jpg", "../secret.jpg", "pictures/none.jpg"]
    rows = [
        {"n": "x", "_line": number, "_row_id": "", "_reasons": [], "_pictures": [path]}
        for number, path in enumerate(paths, 1)
    ]
    table = "".join(json.dumps(row) + "\n" for row in reversed(rows))
    (tmp_path / "q" / "metadata.jsonl").write_text(table)
    lines = [quarantined(number, "text_too_short") for number in range(1, 5)]
    html = report(shop_of(lines, tmp_path / "q"))
    page = Page(html.partition("Rows in quarantine")[2])
    assert len(page.all("img")) == 1
    assert (page.text.count("unreadable"), page.text.count("no picture")) == (1, 2)
    assert "What to do: write more, or lower min_length." in page.text


@pytest.mark.parametrize("lines", [[], [quarantined(1, "broken_json")], [line(1)]])
def test_odd_catalogs(lines: list[LedgerLine]) -> None:
    """No row, only a quarantined one, and only one at all."""
    shop = shop_of(lines)
    assert figures(report(shop))[0] == str(len(lines))
    assert f"{len(lines)} row" in Page(render_ledger_page(*shop, "Autumn")).text


def test_first_catalog() -> None:
    """There is nothing to compare it with."""
    assert "This is the first catalog of its name" in Page(report(shop_of(MIXED))).text


def changed_shops() -> tuple[Shop, CatalogChanges]:
    """A shop of which all descriptions are new and longer, with what changed."""
    old = [line(number) for number in range(1, 61)]
    new = [line(n, text_hash="new", characters=400 + n) for n in range(2, 62)]
    shop = shop_of(new, description=lambda each: "青花瓷 " + f"new words {each.label} " * 30)
    return shop, compare_catalogs(*shop, *shop_of(old), DATA)


def test_what_changed() -> None:
    """Rows, verdicts, plots and examples."""
    shop, changes = changed_shops()
    html = report(shop, changes)
    section = Page(html.partition("What changed")[2]).text
    assert figures(html)[5:] == ["0", "1", "1", "59"]
    assert "description length drifted Kolmogorov-Smirnov 1 < 0.001" in section
    assert "category steady chi-squared" in section
    assert "Rose most" in section and "Fell most" in section and "青花" in section
    assert "description before This is Mug 2." in section
    assert len(re.findall(r'class="outline"', html)) == 2


def test_hostile_texts_are_shown_and_not_obeyed() -> None:
    """In every place that a text of the catalog can reach."""
    reasons = [Reason(HOSTILE, HOSTILE, HOSTILE)]
    texts = {"label": HOSTILE, "place": HOSTILE, "language": HOSTILE, "group": HOSTILE}
    lines = [
        line(1, **texts, reasons=reasons, decision=Decision.REPAIRED),
        line(2, **texts, row_id=HOSTILE),
        quarantined(3, HOSTILE, **texts),
    ]
    new = shop_of(lines, category=HOSTILE, description=HOSTILE * 2)
    lines[0] = line(1, **texts | {"text_hash": "old"})
    old = shop_of(lines, category=HOSTILE, description=HOSTILE)
    changes = compare_catalogs(*new, *old, DATA)
    for html in (report(new, changes, HOSTILE), render_ledger_page(*new, HOSTILE)):
        page = Page(html)
        assert page.all("script") == []
        assert all(str(each["src"]).startswith("data:image/jpeg;") for each in page.all("img"))
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
        assert "<script>alert('x')</script>" in page.text
    assert changes.rows.edited == ["id-00001"]


def test_nothing_is_fetched() -> None:
    """No address leads outside, and the policy would not let it."""
    shop, changes = changed_shops()
    for html in (report(shop, changes), render_ledger_page(*shop, "Autumn")):
        page = Page(html)
        addresses = [
            str(value)
            for _, attributes in page.tags
            for name, value in attributes.items()
            if name in ("src", "href", "srcset", "action", "data", "xlink:href", "poster")
        ]
        assert addresses and all(each.startswith("data:image/jpeg;") for each in addresses)
        assert {"link", "iframe", "script"} & {tag for tag, _ in page.tags} == set()
        assert "@import" not in html and "url(" not in html
        policy = [each["content"] for each in page.all("meta") if "http-equiv" in each]
        assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_ledger_order_and_words() -> None:
    """Quarantined, duplicate, repaired, kept, each in line order; every fact of a row is there."""
    lines = [*MIXED, quarantined(7, "ragged_row"), line(8, carried=True)]
    rows = table_rows(render_ledger_page(*shop_of(lines), "Autumn"))[1:]
    assert [row.split()[0] for row in rows] == ["3", "4", "7", "6", "2", "1", "5", "8"]
    assert "Mug 2 shop/metadata.csv row 2 repaired HTML was removed from a text" in rows[4]
    assert rows[4].endswith("120 × 90 → 112 × 84 202 Mug 2 training id-00002")
    assert "Mug 8 training carried on id-00008" in rows[7]
    assert "duplicate The row is an exact copy of another and counts once" in rows[3]


def test_ledger_says_what_it_leaves_out() -> None:
    """A long ledger is cut, with a word on it; a short one is not."""
    shop = shop_of([line(number) for number in range(1, 31)])
    html = render_ledger_page(*shop, "Autumn", rows_shown=10)
    assert len(table_rows(html)) == 11
    assert (
        "shows 10 of 30 rows; 20 are not shown. The whole ledger is in ledger.csv."
        in Page(html).text
    )
    assert "not shown" not in render_ledger_page(*shop, "Autumn", rows_shown=30)


def test_pictures_that_cannot_be_decoded() -> None:
    """Of three pictures the broken one is said to be unreadable."""
    shop = shop_of([line(1)], pictures=lambda number: [PICTURE, b"broken", PICTURE, PICTURE])
    page = Page(render_ledger_page(*shop, "Autumn"))
    assert (len(page.all("img")), page.text.count("unreadable")) == (2, 1)


def test_500_rows_of_noise_are_small_and_quick() -> None:
    """The page can be mailed: small thumbnails, and only shown pictures are decoded."""
    noise = [jpeg(seed, (300, 200)) for seed in range(10)]
    lines = [line(number) for number in range(1, 601)]
    shop = shop_of(lines, pictures=lambda n: [noise[n % 10] if n <= 500 else b"never decoded"])
    start = time.monotonic()
    html = render_ledger_page(*shop, "Autumn")
    assert time.monotonic() - start < 20
    assert len(html) < 3_000_000 and "unreadable" not in html
    source = str(Page(html).all("img")[0]["src"])
    thumbnail = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert max(thumbnail.size) == 96


def long_shop(count: int) -> Shop:
    """Many rows; their pictures are broken."""
    numbers = range(count)
    columns = {name: [value] * count for name, value in line(0).record().items()}
    columns |= {"line": list(numbers), "row_id": [f"id-{number}" for number in numbers]}
    columns |= {"group": columns["row_id"], "tokens": list(numbers)}
    ledger = Dataset.from_dict(columns, features=ledger_features())
    texts = {
        "row_id": columns["row_id"],
        "images": [[{"bytes": b"broken", "path": None}]] * count,
        "name": [f"Mug {number}" for number in numbers],
        "category": [f"c{number % 40}" for number in numbers],
        "description": ["A mug."] * count,
    }
    rows = Dataset.from_dict(texts, features=catalog_features(FIELDS))
    return Catalog(rows, "shop", "v1"), RowLedger(ledger, Path("none"))


def peak_megabytes() -> float:
    """The most memory that this process had since the peak was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_100_000_rows() -> None:
    """Long ledgers render in bounded time and memory."""
    shop = long_shop(100_000)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = peak_megabytes(), time.monotonic()
    report_html, ledger_html = report(shop), render_ledger_page(*shop, "Autumn")
    assert time.monotonic() - start < 90
    assert peak_megabytes() - before < 150
    assert len(report_html) < 300_000 and len(ledger_html) < 2_000_000
    assert "99,500 are not shown" in Page(ledger_html).text


KNOWN = """missing_text text_too_short text_too_long not_allowed banned_phrase pattern_not_found
wrong_language picture_too_small too_many_pictures missing_picture picture_outside_folder
picture_not_found picture_unreadable picture_too_large download_failed ragged_row broken_json
control_token too_many_tokens processor_refused split_conflict html_removed entities_decoded
unicode_normalised control_characters_removed picture_rotated alpha_flattened colours_converted
first_frame_taken
exact_copy"""


def test_reason_meanings() -> None:
    """Every known code has words of its own, an unknown one is spelt out."""
    assert set(KNOWN.split()) == set(MEANINGS)
    assert len({reason_meaning(code) for code in MEANINGS}) == len(MEANINGS)
    assert reason_meaning("sky_fell_down") == "sky fell down"


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not on PATH")
def test_a_browser_has_nothing_to_complain_about(tmp_path: Path) -> None:
    """Chromium renders both pages without an error or a breach of the security policy."""
    shop, changes = changed_shops()
    pages = {"report": report(shop, changes), "ledger": render_ledger_page(*shop, "Autumn")}
    for name, html in pages.items():
        (tmp_path / f"{name}.html").write_text(html, encoding="utf-8")
        done = subprocess.run(
            [
                *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"),
                (tmp_path / f"{name}.html").as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "CONSOLE" not in done.stderr and "Content Security Policy" not in done.stderr
        assert Page(done.stdout).text.count("Mug 20") == Page(html).text.count("Mug 20") > 0
