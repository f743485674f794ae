"""The page for a merchandiser: what is to be looked at first, bounded, and safe."""

import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from tests.unit.describing.conftest import Shop
from vlmtune.config.evaluation import RulesConfig
from vlmtune.describing.page import MEANINGS, flag_meaning, render_descriptions
from vlmtune.describing.results import DescribingRecord, Descriptions, table_schema
from vlmtune.evaluation.rules import CHECKS

HOSTILE = '</p><script>alert("x")</script><img src=x onerror=alert(1)>\u202e'


def described(
    shop: Shop, flagged: dict[str, list[str]] | None = None, **texts: str
) -> Descriptions:
    """Descriptions as they could have been written: name -> text, name -> flags."""
    flagged = flagged or {}
    records = [
        {
            "row_id": row["row_id"],
            "place": f"shop row {number}",
            "name": row["name"],
            "category": row["category"],
            "description": texts.get(row["name"].replace(" ", ""), f"This is {row['name']}."),
            "flags": flagged.get(row["name"], []),
            "problems": [f"found {flag}" for flag in flagged.get(row["name"], [])],
            "model": "merged model",
            "seconds": 0.1,
        }
        for number, row in enumerate(shop.catalog.texts())
    ]
    record = DescribingRecord(
        model="merged model of finetune-1",
        engine="transformers",
        rows=len(records),
        new_rows=len(records),
        flagged_rows=len(flagged),
        flags={flag: 1 for flags in flagged.values() for flag in flags},
        quarantined_rows=1,
        new_tokens=80,
        seconds=4.0,
    )
    table = pyarrow.Table.from_pylist(records, schema=table_schema(["name", "category"]))
    return Descriptions(table, record)


def page_of(shop: Shop, descriptions: Descriptions, rows_shown: int = 500) -> str:
    """The page, and nothing in it that is loaded or run."""
    page = render_descriptions(descriptions, shop.catalog, shop.ledger, "describe-1", rows_shown)
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:image/jpeg)', page)
    return page


def test_flagged_rows_come_first(shop: Shop) -> None:
    """With what is wrong in plain words, their pictures, and then all others."""
    flagged = {"Mug 8": ["html", "repetition"], "Mug 3": ["empty"]}
    page = page_of(shop, described(shop, flagged))
    titles = re.findall(r'class="title" dir="auto">([^<]+)<', page)
    assert titles == [f"Mug {number}" for number in (3, 8, 1, 2, 4, 6, 7, 9)]
    assert page.count("data:image/jpeg") == 8
    assert page.count('<article class="card flagged">') == 2
    for words in ("nothing was written", "HTML in the text", "found repetition", "it repeats"):
        assert words in page
    assert "2 of them break a rule of the trade" in page
    assert "merged model of finetune-1" in page and "describe-1" in page


def test_rows_in_quarantine_are_told_with_their_reasons(shop: Shop) -> None:
    """And what to do about them."""
    page = page_of(shop, described(shop))
    assert "None of them breaks a rule of the trade." in page
    assert "Mug 5" in page and "shop/metadata.csv row 5" in page
    left_out = page[page.index("<h2>Not described</h2>\n") :]
    assert "What to do" in left_out and "picture" in left_out


def test_the_page_is_bounded(shop: Shop) -> None:
    """It says how many rows it leaves out, and where they are."""
    flagged = {f"Mug {number}": ["length"] for number in (1, 2, 3)}
    page = page_of(shop, described(shop, flagged), rows_shown=2)
    assert page.count("data:image/jpeg") == 2
    text = " ".join(page.split())
    assert "This page shows 2 of 8 products, and 2 of the 3 to look at." in text
    assert "descriptions.csv" in text
    whole = page_of(shop, described(shop, flagged), rows_shown=8)
    assert "This page shows" not in whole


def test_hostile_texts_are_text(shop: Shop) -> None:
    """Whatever a catalog or a model writes."""
    page = page_of(shop, described(shop, Mug1=HOSTILE))
    assert str(escape(HOSTILE)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page


def test_each_rule_has_a_meaning() -> None:
    """The page has plain words for all rules there are."""
    assert set(MEANINGS) == set(CHECKS)
    assert flag_meaning("a_new_rule") == "a new rule"


def test_a_real_shop_is_shown(shop: Shop) -> None:
    """From the model to the page."""
    found = shop.describe(rules=RulesConfig(max_length=3))
    page = page_of(shop, found)
    assert "8 products described" in page and page.count("too short or too long") == 9
    assert found.record.flags["cut"] == 8  # 8 tokens are too few for all of them
    assert "8 descriptions were cut before the end: raise generation.max_new_tokens" in page
    assert shop.describe().record.flags["cut"] == 8  # as it was written before


@pytest.mark.browser
def test_it_opens_in_a_browser(shop: Shop, tmp_path: Path) -> None:
    """A real browser draws it, pictures and all."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(page_of(shop, described(shop, {"Mug 3": ["empty"]})))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run")
    subprocess.run(
        [
            *(browser, *options, f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1000,1400", f"--screenshot={picture}", f"file://{path}"),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    from PIL import Image

    colours = Image.open(picture).convert("RGB").resize((100, 140)).getcolors(14_000)
    assert len(colours) > 50


def test_an_empty_field_takes_no_room(shop: Shop) -> None:
    """And a row without any is called by its place."""
    columns: Any = described(shop).table.to_pylist()
    for row in columns:
        row["name"] = row["category"] = ""
    table = pyarrow.Table.from_pylist(columns, schema=table_schema(["name", "category"]))
    page = page_of(shop, replace(described(shop), table=table))
    assert 'class="title" dir="auto">shop row 0<' in page
    assert "<dt>category" not in page
