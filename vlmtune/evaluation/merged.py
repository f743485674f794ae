"""The merged model before the gate: its descriptions are what users get."""

from typing import TYPE_CHECKING

from vlmtune.config.evaluation import GateConfig
from vlmtune.config.model import ModelConfig
from vlmtune.config.publishing import MergeConfig
from vlmtune.evaluation.comparison import Exam
from vlmtune.evaluation.gate import GateCheck, PromotionDecision, decide
from vlmtune.evaluation.results import MERGED, EvaluationReport
from vlmtune.evaluation.scoring import answers_in, build_report
from vlmtune.models.merge_record import MergeRecord, MergeResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def why_not_merged(decision: PromotionDecision, merging: MergeConfig) -> str:
    """Why a tuned model is not merged; empty if it is."""
    if not merging.enabled:
        return "merge.enabled is false"
    return "" if decision.verdict == "promoted" else f"the gate: {decision.describe()}"


def judge_merged(
    merged: MergeResult,
    model: ModelConfig,
    exam: Exam,
    report: EvaluationReport,
    decision: PromotionDecision,
    gate: GateConfig,
) -> tuple[EvaluationReport, PromotionDecision]:
    """Ask the merged model, read back from its files, what the others were asked.

    Args:
        model: how models are loaded.
        report, decision: of the tuned model.

    Returns:
        The report with the merged model in it, and the decision on that. Where there is no merged
        model, those of the tuned one; but a merge that failed its checks fails the gate.
    """
    if merged.record.status == "failed":
        return report, _failed(merged.record, decision, gate)
    if merged.folder is None:
        return report, decision
    loaded, processor = _load(merged, model)
    answers = answers_in(report)
    answers[MERGED] = exam.answers(MERGED, loaded, processor, picture_test=True)
    report = build_report(exam.held_out, answers, exam.config)
    judged = decide(report, gate, MERGED, decision.champion)
    return report, judged.of_files(decision.adapter_files)


def _load(merged: MergeResult, model: ModelConfig) -> "tuple[PreTrainedModel, ProcessorMixin]":
    from vlmtune.models.processor import load_processor
    from vlmtune.models.quantized import load_model

    folder = str(merged.folder)
    return load_model(folder, None, model, quantization={}), load_processor(folder, None, model)


def _failed(
    record: MergeRecord, decision: PromotionDecision, gate: GateConfig
) -> PromotionDecision:
    checks = [
        GateCheck(
            name=f"merge: {each.name}",
            wanted=each.wanted,
            found=each.found,
            met=each.met,
            otherwise=gate.outcomes.merged,
        )
        for each in record.checks
    ]
    return decision.model_copy(
        update={"subject": MERGED, "verdict": gate.outcomes.merged, "checks": checks}
    )
