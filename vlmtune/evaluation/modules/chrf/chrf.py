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
    use_aggregator: False for a score of each pair by itself.
Returns:
    chrf: 0 to 100; a list of them without the aggregator.
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

    def _compute(
        self, predictions: list[str], references: list[str], use_aggregator: bool = True
    ) -> dict[str, float | list[float]]:
        if use_aggregator:
            return {"chrf": sacrebleu.corpus_chrf(predictions, [references]).score}
        pairs = zip(predictions, references, strict=True)
        return {"chrf": [sacrebleu.sentence_chrf(text, [own]).score for text, own in pairs]}
