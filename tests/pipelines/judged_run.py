"""A run whose tuned model computes NaN, judged by the gate: artifacts, ZenML and run folder.

python tests/pipelines/judged_run.py FOLDER
"""

import json
import math
import sys
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from zenml import pipeline, step  # noqa: E402
from zenml.client import Client  # noqa: E402
from zenml.types import HTMLString  # noqa: E402

from materializers.evaluation_report import EvaluationReportMaterializer  # noqa: E402
from materializers.promotion_decision import PromotionDecisionMaterializer  # noqa: E402
from vlmtune.config.evaluation import EvaluationConfig, GateConfig  # noqa: E402
from vlmtune.evaluation.gate import PromotionDecision, decide  # noqa: E402
from vlmtune.evaluation.report import render_report  # noqa: E402
from vlmtune.evaluation.results import BASE, TUNED, EvaluationReport  # noqa: E402
from vlmtune.evaluation.scoring import Answers, HeldOut, build_report  # noqa: E402

ROWS = 40


@step(
    output_materializers={
        "evaluation": EvaluationReportMaterializer,
        "decision": PromotionDecisionMaterializer,
    }
)
def judge() -> tuple[
    Annotated[EvaluationReport, "evaluation"],
    Annotated[PromotionDecision, "decision"],
    Annotated[HTMLString, "report"],
]:
    """What a model writes that has NaN for each token."""
    rows = [str(row) for row in range(ROWS)]
    held_out = HeldOut(
        records=[{"row_id": row, "description": f"a mug called {row}"} for row in rows],
        groups=rows,
        shared_with_train=[""] * ROWS,
        prompts=[["Describe it."]] * ROWS,
        rows=ROWS,
    )
    answers = {
        BASE: Answers(texts=["a mug"] * ROWS, losses=[1.0] * ROWS),
        TUNED: Answers(texts=["!"] * ROWS, losses=[math.nan] * ROWS),
    }
    report = build_report(held_out, answers, EvaluationConfig())
    decision = decide(report, GateConfig())
    page = render_report(report, lambda _: None, "NaN", {}, None, decision)
    return report, decision, HTMLString(page)


@step
def merge(evaluation: EvaluationReport, decision: PromotionDecision) -> None:
    """The step after it, which reads both back."""
    assert math.isnan(evaluation.metrics[TUNED]["answer_loss"])
    decision.require_not_failed()


@pipeline(enable_cache=False)
def judged() -> None:
    """As in the fine-tuning pipeline."""
    evaluation, decision, _ = judge()
    merge(evaluation, decision)


def main() -> None:
    """Run it, and write the run's folder as run.py does."""
    from orchestration.run_folder import fill_run_folder

    try:
        judged()
    except RuntimeError as error:  # ZenML's, whatever a step raised
        print(error)
    (run,) = Client().list_pipeline_runs(sort_by="desc:created").items
    summary = fill_run_folder(Path(sys.argv[1]), run, hub=None, places={})
    print(json.dumps(summary["gate"]["verdict"]))


if __name__ == "__main__":
    main()
