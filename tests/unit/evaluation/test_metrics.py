"""Metrics against values counted by hand, or given by rouge_score and sacrebleu themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmtune.errors import UserError
from vlmtune.evaluation.metrics import MODULES, meaning_of, score, score_by_row

REPO = MODULES.parents[2]
PREDICTIONS = ["A red mug by the sea.", "The lamp glows softly at night.", "Nothing of the kind"]
REFERENCES = ["A red mug from the sea.", "The tall lamp glows at night.", "A bag for every day."]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def scores_of(
    predictions: list[str],
    references: list[str] | None = None,
    fields: list[dict[str, str]] | None = None,
    copied_fields: tuple[str, ...] = (),
    terms: dict[str, list[str]] | None = None,
) -> dict[str, float]:
    return score(
        predictions,
        references if references is not None else predictions,
        fields if fields is not None else [{}] * len(predictions),
        list(copied_fields),
        terms or {},
    )


def test_identical_texts_reach_the_top_of_every_scale():
    found = scores_of(REFERENCES)

    assert found == pytest.approx({"rouge_l": 1.0, "bleu": 100.0, "chrf": 100.0, "exact": 1.0})
    assert found["bleu"] <= 100.0


def test_texts_without_a_letter_in_common_score_nothing():
    assert scores_of(["aaaa aaaa"], ["zzzz zzzz"]) == pytest.approx(
        {"rouge_l": 0.0, "bleu": 0.0, "chrf": 0.0, "exact": 0.0}
    )


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    # "the cat sat" in "the cat is sitting": the, cat. Precision 2/3, recall 2/4, F1 4/7.
    # "b a" and "a b" share one word in order: precision 1/2, recall 1/2, F1 1/2.
    assert score_by_row(
        "rouge_l", ["the cat sat", "b a"], ["the cat is sitting", "a b"]
    ) == pytest.approx([4 / 7, 1 / 2])
    assert scores_of(["the cat sat", "b a"], ["the cat is sitting", "a b"])[
        "rouge_l"
    ] == pytest.approx((4 / 7 + 1 / 2) / 2)


def test_scores_are_those_of_the_libraries_themselves():
    import sacrebleu
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"])
    by_row = [
        scorer.score(reference, prediction)["rougeL"].fmeasure
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    found = scores_of(PREDICTIONS, REFERENCES)

    assert score_by_row("rouge_l", PREDICTIONS, REFERENCES) == pytest.approx(by_row)
    assert found["rouge_l"] == pytest.approx(sum(by_row) / 3)
    letters = [
        sacrebleu.sentence_chrf(prediction, [reference]).score
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    assert score_by_row("chrf_row", PREDICTIONS, REFERENCES) == pytest.approx(letters)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score)
    assert 0 < found["bleu"] < found["chrf"] < 100


@pytest.mark.parametrize(
    "text", ["这款青花瓷杯适合早晨的第一杯茶", "قميص قطني أحمر", "Тёплый шарф"]
)
def test_scripts_other_than_latin_are_not_dropped(text: str):
    found = scores_of([text])

    assert found["rouge_l"] == pytest.approx(1.0)
    assert found["chrf"] == pytest.approx(100.0)


def test_a_half_right_chinese_text_is_half_right():
    assert score_by_row("rouge_l", ["青花茶壶"], ["青花瓷杯"]) == pytest.approx([0.5])


def test_exact_ignores_only_the_white_space_around():
    assert scores_of([" a b ", "a  b"], ["a b\n", "a b"])["exact"] == 0.5


def test_a_field_counts_as_copied_letter_by_letter():
    fields = [{"name": "Tovi"}, {"name": "Tovi"}, {"name": ""}, {}]
    texts = ["Meet Tovi.", "meet tovi.", "Anything", "Anything"]

    # The rows without a name say nothing about copying.
    assert scores_of(texts, fields=fields, copied_fields=("name",))["copied_name"] == 0.5


def test_no_value_to_copy_gives_no_key():
    assert "copied_name" not in scores_of(["a"], fields=[{"name": ""}], copied_fields=("name",))


def test_a_copied_field_that_no_row_has_is_the_users_mistake():
    with pytest.raises(UserError, match=r"copied_fields names 'brand'.*category, name"):
        scores_of(["a"], fields=[{"name": "x", "category": "y"}], copied_fields=("brand",))


def test_a_term_is_right_if_it_is_the_references_own_and_the_only_one():
    terms = {"colours": ["amber", "moss"]}
    references = ["in amber", "in moss", "in amber", "in amber", "amber and moss", "no colour"]
    predictions = ["AMBER!", "in amber", "amber or moss", "none", "amber", "moss"]
    found = scores_of(predictions, references, terms=terms)

    # Four references name one term; only the first prediction names it and no other.
    assert found["term_colours"] == pytest.approx(1 / 4)
    assert found["term_colours_any"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("coloured all over", False),  # "red" inside a word
        ("Red.", True),
        ("sky  blue", True),  # any white space between the words
        ("skyblue", False),
        ("C++ inside", True),
        ("C+ inside", False),
        ("这款天青色杯子", True),  # no spaces to find words by
    ],
)
def test_terms_are_whole_words(text: str, named: bool):
    terms = {"v": ["red", "sky blue", "C++", "天青"]}

    assert scores_of([text], terms=terms)["term_v_any"] == float(named)


def test_of_overlapping_terms_the_longest_counts():
    terms = {"colours": ["blue", "navy blue"]}
    found = scores_of(["navy blue", "blue"], ["Navy Blue", "navy blue"], terms=terms)

    assert found["term_colours"] == 0.5


def test_a_vocabulary_that_no_reference_uses_has_no_share_of_right_terms():
    found = scores_of(["moss"], ["plain"], terms={"colours": ["moss"]})

    assert "term_colours" not in found
    assert found["term_colours_any"] == 1.0


@pytest.mark.parametrize("terms", [{"v": []}, {"v": ["moss", " "]}, {"v_any": ["moss"]}])
def test_a_vocabulary_that_cannot_be_used_is_the_users_mistake(terms: dict[str, list[str]]):
    with pytest.raises(UserError, match=r"evaluation\.terms\.v"):
        scores_of(["moss"], terms=terms)


def test_no_rows_are_the_users_mistake():
    with pytest.raises(UserError, match="no description to score"):
        scores_of([])
    assert score_by_row("rouge_l", [], []) == []


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        score_by_row("rouge_l", ["a"], ["a", "b"])
    with pytest.raises(ValueError, match="same rows"):
        scores_of(["a"], ["a"], fields=[])


def test_values_are_shown_as_people_read_them():
    assert meaning_of("rouge_l").show(0.8716) == "0.87"
    assert meaning_of("bleu").show(71.25) == "71.2"
    assert meaning_of("copied_name").show(0.971) == "97.1%"
    assert meaning_of("term_colours_any").label == "Any “colours” term"
    assert meaning_of("unheard_of").label == "unheard_of"


def test_two_processes_score_at_once_offline_from_elsewhere_with_empty_caches(tmp_path: Path):
    code = "import json; from vlmtune.evaluation.metrics import score; " + (
        "print(json.dumps(score(['a b c d e'], ['a b c d e'], [{}], [], {})))"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {
        **clean,
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(REPO),
    }
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = files_of_modules()

    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=elsewhere,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert json.loads(output.splitlines()[-1])["rouge_l"] == 1.0
    assert files_of_modules() == before
    assert list(elsewhere.iterdir()) == []


def files_of_modules() -> set[Path]:
    return {path for path in MODULES.rglob("*") if "__pycache__" not in path.parts}
