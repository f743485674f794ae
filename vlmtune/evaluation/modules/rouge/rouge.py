"""ROUGE-L as a module of the `evaluate` library."""

import re

import datasets
import evaluate
from rouge_score import rouge_scorer, tokenizers

DESCRIPTION = """
ROUGE-L (Lin 2004, https://aclanthology.org/W04-1013): the F1 of the longest word sequence that a
prediction and its reference share in order, gaps allowed. Computed by Google's rouge_score,
without stemming.
"""
INPUTS = """
Args:
    predictions: list of texts.
    references: list of texts, one for each prediction.
    use_aggregator: True gives the mean over all rows, False a list with one value a row.
Returns:
    rougeL: 0 to 1 (float, or list of floats).
"""

# Kana, CJK ideographs and Thai are written without spaces, so each character counts as a word.
UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


class AnyScriptTokenizer(tokenizers.Tokenizer):
    """Splits ASCII text as rouge_score does, and keeps the letters of every other script.

    rouge_score's own tokenizer drops all but a-z and 0-9: two identical Chinese texts score 0.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in lower case."""
        return WORD.findall(text.lower())


class Rouge(evaluate.Metric):
    """ROUGE-L over pairs of texts."""

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
        scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=AnyScriptTokenizer())
        rows = [
            float(scorer.score(reference, prediction)["rougeL"].fmeasure)
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        return {"rougeL": sum(rows) / len(rows) if use_aggregator else rows}
