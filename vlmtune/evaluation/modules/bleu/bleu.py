"""BLEU as a module of the `evaluate` library."""

import datasets
import evaluate
import sacrebleu

DESCRIPTION = """
Corpus BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040) as computed by sacrebleu
(Post 2018): word sequences of up to four that the predictions share with their references.
"""
INPUTS = """
Args:
    predictions: list of texts.
    references: list of texts, one for each prediction.
    tokenize: sacrebleu's name of the word splitter. "13a", the default, suits languages with
        spaces between words; "zh" suits Chinese.
Returns:
    bleu: 0 to 100.
"""


class Bleu(evaluate.Metric):
    """Corpus BLEU over pairs of texts."""

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
        self, predictions: list[str], references: list[str], tokenize: str = "13a"
    ) -> dict[str, float]:
        score = sacrebleu.corpus_bleu(predictions, [references], tokenize=tokenize).score
        return {"bleu": min(score, 100.0)}  # rounding takes identical texts to 100.00000000000004
