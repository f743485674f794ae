"""The HTML page: whole, safe with hostile texts, small."""

import base64
import io
import math
import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from vlmtune.evaluation.report import render_report
from vlmtune.evaluation.results import BASE, TUNED, EvaluationReport, Prediction
from vlmtune.pages import shorten

HOSTILE = "</p><script>alert('x')</script><img src=\"http://evil.example/a.png\" onerror=alert(1)>"


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
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def jpeg(width: int = 900, height: int = 600) -> bytes:
    """Noise, the hardest picture to make small."""
    noise = random.Random(0).randbytes(width * height * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (width, height), noise).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURE = jpeg()


def prediction(number: int, tuned_score: float = 0.5, **changes: Any) -> Prediction:
    return Prediction(
        **{
            "row_id": f"row-{number:04d}",
            "group": f"group {number}",
            "fields": {"name": f"Name {number}"},
            "reference": f"Reference {number}",
            "texts": {BASE: f"Base text {number}", TUNED: f"Tuned text {number}"},
            "scores": {BASE: 0.125, TUNED: tuned_score},
            **changes,
        }
    )


def report_of(predictions: list[Prediction], **changes: Any) -> EvaluationReport:
    return EvaluationReport(
        **{
            "rows": len(predictions),
            "held_out_rows": len(predictions),
            "metrics": {
                BASE: {"rouge_l": 0.21, "bleu": 2.0, "copied_name": 0.017, "term_colours_any": 0.0},
                TUNED: {"rouge_l": 0.87, "bleu": 71.2, "copied_name": 0.966, "term_colours_any": 1},
            },
            "seconds": {BASE: 1.5, TUNED: 2.5},
            "predictions": predictions,
            **changes,
        }
    )


def render(
    report: EvaluationReport,
    picture: bytes | None = PICTURE,
    loss_history: list[dict[str, Any]] | None = None,
    title: str = "Autumn",
    facts: dict[str, str] | None = None,
) -> str:
    return render_report(report, lambda row_id: picture, title, facts or {}, loss_history)


def test_the_headline_compares_base_and_tuned():
    page = Page(render(report_of([prediction(1)]), facts={"Catalog": "demo"}))

    assert "0.87 from 0.21" in page.text
    assert "96.6% from 1.7%" in page.text
    assert "+0.66" in page.text and "+94.9 points" in page.text
    assert "The one product held back from training" in page.text
    assert "Catalog demo" in page.text
    bars = [attributes["style"] for attributes in page.all("span") if "style" in attributes]
    assert bars[:2] == ["width:21.0%", "width:87.0%"]


def test_groups_and_confidence_are_said():
    rows = [prediction(1), prediction(2, group="group 1"), prediction(3)]
    page = Page(render(report_of(rows)))

    assert "They form 2 groups" in page.text
    assert "two-sided at 95%, of 2 groups with 3 rows" in page.text
    assert "one-sided, by the lower end (97.5%)" in page.text
    assert "share something with training" not in page.text and "were cut" not in page.text


def test_rows_that_share_something_with_training_stand_apart():
    rows = [prediction(1), prediction(2, 0.75, shared_with_train="description")]
    page = Page(render(report_of(rows)))

    assert "1 of the 2 rows share a description or an image" in page.text
    shared = page.text[page.text.index("Shared with training rows") :]
    assert shared.split()[:7] == ["Shared", "with", "training", "rows", "1", "0.12", "0.75"]


def test_cut_descriptions_are_counted():
    cut = prediction(1, broken_rules={TUNED: {"cut": "cut off"}})
    page = Page(render(report_of([cut, prediction(2)])))

    assert "1 of 2 descriptions of the fine-tuned model were cut before their end" in page.text
    assert "raise generation.max_new_tokens" in page.text


def test_figures_that_are_no_numbers_are_shown():
    rows = [prediction(1, math.nan)]
    metrics = {BASE: {"rouge_l": 0.2}, TUNED: {"rouge_l": math.nan}}
    page = Page(render(report_of(rows, metrics=metrics)))

    assert "nan from 0.20" in page.text


def test_it_says_when_not_all_held_out_rows_were_described():
    page = Page(render(report_of([prediction(1), prediction(2)], held_out_rows=1234)))

    assert "2 of the 1,234 products held back from training" in page.text


def test_hostile_texts_are_shown_and_not_obeyed():
    row = prediction(
        1,
        row_id=HOSTILE,
        fields={HOSTILE: HOSTILE},
        reference=HOSTILE,
        texts={BASE: HOSTILE, TUNED: HOSTILE},
    )
    page = Page(render(report_of([row]), title=HOSTILE, facts={HOSTILE: HOSTILE}))

    assert page.all("script") == []
    assert len(page.all("img")) == 1  # the row's own thumbnail
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert('x')</script>" in page.text  # readable, as text


def test_nothing_is_fetched():
    html = render(report_of([prediction(1, reference=HOSTILE)]))
    page = Page(html)
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "xlink:href", "poster")
    ]

    assert [str(address)[:23] for address in addresses] == ["data:image/jpeg;base64,"]
    assert page.all("link") == [] and page.all("iframe") == []
    assert "@import" not in html and "url(" not in html
    policy = next(
        meta["content"] for meta in page.all("meta") if "content" in meta and "http-equiv" in meta
    )
    assert str(policy).startswith("default-src 'none'")


def test_every_script_and_direction_survives():
    arabic, chinese = "قميص قطني أحمر", "这款青花瓷杯"
    page = Page(render(report_of([prediction(1, reference=arabic, texts={TUNED: chinese})])))

    assert arabic in page.text and chinese in page.text
    assert "(wrote nothing)" in Page(render(report_of([prediction(1, texts={TUNED: ""})]))).text
    assert {"dir": "auto"} in page.all("p")


def test_a_very_long_text_is_cut_with_a_word_on_it():
    page = render(report_of([prediction(1, reference="long " * 100_000)]), picture=None)

    assert len(page) < 30_000
    assert "499,300 more characters" in page
    assert shorten("abcdef", 3) == "abc … (3 more characters)"
    assert shorten("abc", 3) == "abc"


def test_pictures_are_few_and_small():
    asked: list[str] = []

    def pictures(row_id: str) -> bytes:
        asked.append(row_id)
        return PICTURE

    predictions = [prediction(number, number / 100) for number in range(100)]
    html = render_report(report_of(predictions), pictures, "Autumn", {}, None)
    sources = [str(attributes["src"]) for attributes in Page(html).all("img")]
    thumbnail = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))

    assert len(sources) == len(asked) == 24
    assert thumbnail.format == "JPEG" and max(thumbnail.size) == 160
    assert len(html) < 600_000


def test_the_weakest_come_first_and_then_the_best():
    predictions = [prediction(number, number / 100) for number in range(30)]
    cards = re.findall(r"<dt>Row</dt><dd[^>]*>row-(\d+)</dd>", render(report_of(predictions)))

    assert [int(number) for number in cards] == [*range(12), *range(29, 17, -1)]


def test_of_few_rows_each_has_one_card():
    html = render(report_of([prediction(number, number / 10) for number in range(5)]))

    assert re.findall(r"<dt>Row</dt><dd[^>]*>row-000(\d)</dd>", html) == list("01243")


def test_all_rows_stand_in_the_table_up_to_a_limit():
    table = render(report_of([prediction(n) for n in range(1500)]), picture=None)
    table = table.partition("<details>")[2]

    assert "All 1,500 rows (the first 1,000)" in table
    assert "row-0999" in table and "row-1000" not in table


@pytest.mark.parametrize("picture", [None, b"", b"no picture", PICTURE[:200]])
def test_a_row_without_a_usable_picture_keeps_its_card(picture: bytes | None):
    page = Page(render(report_of([prediction(1)]), picture=picture))

    assert page.all("img") == []
    assert "no picture" in page.text and "Tuned text 1" in page.text


def test_the_loss_is_plotted_from_the_trainers_log():
    history = [
        {"step": 10, "loss": 4.0, "learning_rate": 1e-3},
        {"step": 20, "loss": 2.0},
        {"step": 20, "eval_loss": 1.0},
        {"step": 20, "train_loss": 3.0, "train_runtime": 9.0},
    ]
    page = Page(render(report_of([prediction(1)]), loss_history=history))
    curves = {str(a["class"]): str(a["points"]).split() for a in page.all("polyline")}

    # The plot is 760 x 260 with margins 48, 12, 12 and 34: step 20 is at its right, loss 4 at
    # its top, and loss 2 in the middle between 12 and 226.
    assert curves["curve train"] == ["398.0,12.0", "748.0,119.0"]
    assert curves["curve held-out"] == ["748.0,172.5"]
    assert "Training loss, 2 at the end" in page.text


def test_a_loss_that_is_no_number_is_owned_up_to():
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": 1.0}]
    html = render(report_of([prediction(1)]), loss_history=history)

    assert "At 1 logged steps the loss was no finite number" in html
    assert "nan" not in html.partition("<svg")[2].partition("</svg>")[0]


@pytest.mark.parametrize("history", [None, [], [{"step": 1, "train_loss": 1.0}]])
def test_without_a_logged_loss_there_is_no_plot(history: list[dict[str, Any]] | None):
    assert Page(render(report_of([prediction(1)]), loss_history=history)).all("svg") == []


@pytest.mark.parametrize("losses", [[0.0], [3.0], [-1.0, -2.0], [1e-9, 1e9]])
def test_odd_losses_stay_inside_the_plot(losses: list[float]):
    history = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
    [curve] = Page(render(report_of([prediction(1)]), loss_history=history)).all("polyline")
    heights = [float(point.split(",")[1]) for point in str(curve["points"]).split()]

    assert len(heights) == len(losses)
    assert all(12 <= height <= 226 for height in heights)


def test_a_long_training_is_thinned_out_and_keeps_its_last_loss():
    history = [{"step": step, "loss": 1.0 + step % 7} for step in range(1, 10_001)]
    page = Page(render(report_of([prediction(1)]), loss_history=history))
    points = str(page.all("polyline")[0]["points"]).split()

    assert len(points) == 400
    assert points[-1].startswith("748.0,")


def test_one_model_alone_can_be_reported():
    row = prediction(1, texts={TUNED: "Only me"}, scores={TUNED: 0.5})
    page = Page(render(report_of([row], metrics={TUNED: {"rouge_l": 0.5}}, seconds={})))

    assert "0.50" in page.text and "Only me" in page.text
    assert "Base model" not in page.text
