"""Base, tuned model and champion on the same rows, with the demo's real models."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.tolerance import rounding_bound
from tests.unit.conftest import Demo
from vlmtune.config.evaluation import GateConfig
from vlmtune.config.publishing import MergeConfig
from vlmtune.evaluation.comparison import Exam, compare, make_exam, picture_finder
from vlmtune.evaluation.gate import decide
from vlmtune.evaluation.likelihood import answer_losses
from vlmtune.evaluation.merged import judge_merged, why_not_merged
from vlmtune.evaluation.picture_test import other_pictures, with_other_pictures
from vlmtune.evaluation.report import render_report
from vlmtune.evaluation.results import BASE, CHAMPION, MERGED, TUNED, EvaluationReport
from vlmtune.models.adapter import Adapter, attach_adapter
from vlmtune.models.merge_record import MergeCheck, MergeRecord, MergeResult
from vlmtune.models.merging import merge
from vlmtune.prompting import with_pictures

ROWS = 6


@pytest.fixture(scope="module")
def exam(trained: tuple[Demo, Adapter]) -> Exam:
    """A few held-out rows, briefly answered."""
    demo, _ = trained
    config = demo.config.evaluation.model_copy(update={"max_rows": ROWS, "picture_rows": 4})
    generation = {**demo.config.generation, "max_new_tokens": 12}
    first = demo.examples.held_out.select(range(ROWS))  # the adapter changes one of these
    return make_exam(first, demo.catalog, config, generation)


def tuned_model(trained: tuple[Demo, Adapter]) -> tuple[Any, Any]:
    """The quantised base with the adapter, and the processor."""
    demo, adapter = trained
    model, processor = demo.model()
    return attach_adapter(model, adapter), processor


def test_champion_on_the_same_base(trained: tuple[Demo, Adapter], exam: Exam) -> None:
    """The very same adapter as champion writes and scores the same; the model is left as it was."""
    model, processor = tuned_model(trained)
    report = compare(exam, model, processor, champion=trained[1])
    assert report.models == [BASE, TUNED, CHAMPION] and report.rows == ROWS
    for row in report.predictions:
        assert row.texts[CHAMPION] == row.texts[TUNED] and row.losses[CHAMPION] == row.losses[TUNED]
    assert report.metrics[CHAMPION] == report.metrics[TUNED] != report.metrics[BASE]
    assert list(model.peft_config) == ["default"] and model.active_adapter == "default"
    assert report.metrics[TUNED]["answer_loss"] < report.metrics[BASE]["answer_loss"]
    assert set(report.picture_test) == {TUNED}
    decision = decide(report, GateConfig(floors={}, min_groups=2))
    unmet = [check.name for check in decision.checks if not check.met]
    assert "champion" in unmet and decision.verdict == "kept_back"


def test_champion_on_another_base(trained: tuple[Demo, Adapter], exam: Exam) -> None:
    """Its answers are given beforehand."""
    model, processor = tuned_model(trained)
    answers = exam.answers(CHAMPION, model, processor, picture_test=False)
    report = compare(exam, model, processor, champion_answers=answers)
    assert [row.texts[CHAMPION] for row in report.predictions] == answers.texts


def test_the_merged_model_is_asked_the_same(
    trained: tuple[Demo, Adapter], exam: Exam, tmp_path: Any
) -> None:
    """Read back from its files; it stands beside the others, and the gate looks again."""
    demo, adapter = trained
    model, processor = tuned_model(trained)
    report = compare(exam, model, processor)
    gate = GateConfig(min_groups=2, beat_base=None, picture_margin=None, max_violations=None)
    decision = decide(report, gate, champion="7").of_files({"adapter": "hash"})
    assert decision.verdict == "promoted" and why_not_merged(decision, MergeConfig()) == ""
    merged = merge(adapter, demo.config.model, demo.held_out, tmp_path / "merged")
    assert merged.record.status == "merged"
    more, judged = judge_merged(merged, demo.config.model, exam, report, decision, gate)
    assert more.models == [BASE, TUNED, MERGED] and set(more.picture_test) == {TUNED, MERGED}
    assert more.metrics[TUNED] == report.metrics[TUNED]
    assert judged.subject == MERGED and judged.champion == "7"
    assert judged.adapter_files == {"adapter": "hash"}
    assert [check.name for check in judged.checks] == ["inert", "groups", "merged"]


@pytest.mark.parametrize("sampled", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
def test_a_model_that_computes_nothing_but_nan(
    trained: tuple[Demo, Adapter], exam: Exam, sampled: dict[str, Any]
) -> None:
    """It still writes something; the gate fails it, and report and page can be written."""
    model, processor = tuned_model(trained)
    with torch.no_grad():
        next(each for name, each in model.named_parameters() if "lora_B" in name).fill_(math.nan)
    exam = replace(exam, generation=exam.generation | sampled)
    report = compare(exam, model, processor)
    assert math.isnan(report.metrics[TUNED]["answer_loss"])
    assert math.isfinite(report.metrics[BASE]["answer_loss"])
    decision = decide(report, GateConfig(min_groups=2))
    assert decision.verdict == "failed" and decision.reasons[0].startswith("finite: ")
    assert repr(EvaluationReport.model_validate_json(report.model_dump_json())) == repr(report)
    page = render_report(report, picture_finder(exam.catalog), "NaN", {}, None, decision)
    assert "The gate fails this model" in page


def test_a_merge_that_failed_its_checks(trained: tuple[Demo, Adapter], exam: Exam) -> None:
    """It fails the gate, which names the check; a skipped one leaves the decision as it was."""
    demo, adapter = trained
    check = MergeCheck(name="divergence", wanted="little", found="much", met=False)
    record = MergeRecord(
        status="failed", base=adapter.record.base, adapter_hash="0", checks=[check]
    )
    report: Any = None
    gate = GateConfig()
    before = decide_nothing()
    asked = (demo.config.model, exam, report, before, gate)
    _, judged = judge_merged(MergeResult(record), *asked)
    assert judged.verdict == "failed" and "merge: divergence: little, found much" in judged.reasons
    skipped = record.model_copy(update={"status": "skipped", "checks": []})
    assert judge_merged(MergeResult(skipped), *asked) == (report, before)


def decide_nothing() -> Any:
    """A decision without checks."""
    from vlmtune.evaluation.gate import PromotionDecision

    return PromotionDecision(subject=TUNED, verdict="promoted", checks=[])


def test_why_a_model_is_not_merged() -> None:
    """Switched off, or kept back by the gate."""
    promoted = decide_nothing()
    kept = promoted.model_copy(update={"verdict": "kept_back"})
    assert why_not_merged(promoted, MergeConfig(enabled=False)) == "merge.enabled is false"
    assert why_not_merged(kept, MergeConfig()) == "the gate: kept back"


def test_other_pictures(trained: tuple[Demo, Adapter]) -> None:
    """Never the own one, always the same ones, and each lent once."""
    demo, _ = trained
    rows = demo.examples.held_out.select(range(20))
    partners = other_pictures(rows, demo.catalog, 12)
    assert len(partners) == 12 and partners == other_pictures(rows, demo.catalog, 12)
    assert len(set(partners.values())) == 12
    numbers, groups = rows["row"], rows["group"]
    assert len({groups[place] for place in partners}) == 12  # one row of each group
    for place, other in partners.items():
        assert groups[place] != groups[other]
        own, lent = (demo.catalog.pictures(numbers[at]) for at in (place, other))
        assert own != lent
    swapped = with_other_pictures(rows, partners)
    assert swapped["row_id"] == [rows["row_id"][place] for place in partners]
    assert swapped["row"] == [numbers[other] for other in partners.values()]


def test_no_other_picture(trained: tuple[Demo, Adapter]) -> None:
    """One row, or rows that share one picture, cannot be tried."""
    demo, _ = trained
    one = demo.examples.held_out.select([0])
    same = demo.examples.held_out.select([0, 0, 0])
    assert other_pictures(one, demo.catalog, 5) == other_pictures(same, demo.catalog, 5) == {}


def test_losses_are_those_of_the_answer_alone(trained: tuple[Demo, Adapter]) -> None:
    """As the model computes them for a row by itself; whatever shares its batch."""
    from vlmtune.encoding import IGNORED, CatalogCollator

    demo, _ = trained
    model, processor = tuned_model(trained)
    rows = with_pictures(demo.examples.held_out.select(range(5)), demo.catalog)
    alone = answer_losses(model, processor, rows, 1, "tuned")
    together = answer_losses(model, processor, rows, 5, "tuned")
    collator = CatalogCollator(processor=processor, completion_only_loss=True)
    with torch.no_grad():
        expected = [float(model(**collator([rows[at]])).loss) for at in range(5)]
    # Some 60 roundings to bf16 one after the other, as the demo's model is deep, in both; their
    # mean over the tokens of an answer.
    shortest = min(int((collator([row])["labels"] != IGNORED).sum()) for row in rows)
    bound = rounding_bound(torch.bfloat16, 2 * 60 / shortest)
    assert alone == pytest.approx(expected, rel=bound)
    assert together == pytest.approx(alone, rel=bound)
    assert max(alone) - min(alone) > 2 * bound * max(alone)


def test_rows_are_drawn(trained: tuple[Demo, Adapter], exam: Exam) -> None:
    """Each of another group; and it is known how many there are."""
    demo, _ = trained
    exam = make_exam(demo.examples.held_out, demo.catalog, exam.config, exam.generation)
    assert exam.held_out_rows == len(demo.examples.held_out) > ROWS
    assert len(exam.held_out.records) == ROWS == len(set(exam.held_out.groups))
    assert [each["row_id"] for each in exam.held_out.records] == exam.rows["row_id"]
    assert replace(exam, partners={}).held_out.partners == {}
