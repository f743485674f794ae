"""chrF as a module of the `evaluate` library."""

import datasets
import evaluate
import sacrebleu

DESCRIPTION = """
Corpus chrF2 (Popović 2015, https://aclanthology.org/W15-3049) as computed by sacrebleu: character
sequences of up to six that the predictions share with their references. Needs no word splitter,
so it suits every script.
"""
INPUTS = """
Args:
    predictions: list of texts.
    references: list of texts, one for each prediction.
Returns:
    chrf: 0 to 100.
"""


class Chrf(evaluate.Metric):
    """Corpus chrF over pairs of texts."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"chrf": sacrebleu.corpus_chrf(predictions, [references]).score}
