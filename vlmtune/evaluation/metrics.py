"""Compares written descriptions with the catalog's own.

The text metrics run through the `evaluate` library, from the modules in `modules/`, so they need
no network. What a shop asks beyond them (is the name copied? are our own words used?) is counted
here.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from vlmtune.errors import UserError

MODULES = Path(__file__).resolve().parent / "modules"
UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"  # scripts without spaces between words


def score(
    predictions: list[str],
    references: list[str],
    fields: list[dict[str, str]],
    copied_fields: list[str],
    terms: dict[str, list[str]],
) -> dict[str, float]:
    """Score descriptions against the catalog's own; the three lists run over the same rows.

    Args:
        predictions: the descriptions that a model wrote.
        references: the catalog's own descriptions.
        fields: each row's fields, such as name and category.
        copied_fields: fields whose value must stand in the description, letter by letter.
        terms: vocabulary -> its terms, such as the house's colours.

    Returns:
        `rouge_l`: mean ROUGE-L F1, 0 to 1.
        `bleu`, `chrf`: sacrebleu's corpus scores, 0 to 100.
        `exact`: share of rows that equal the reference, apart from white space around them.
        `copied_<field>`: share of rows whose prediction holds the field's value, case-sensitive.
            Rows without a value do not count; if no row has one, there is no such key.
        `term_<vocabulary>`: of the rows whose reference names exactly one term, the share whose
            prediction names that term and no other; if there is no such row, there is no such key.
            Terms are whole words, in any case. Of overlapping terms the longest one counts:
            "navy blue" does not name "blue".
        `term_<vocabulary>_any`: share of all rows whose prediction names any term.

    Raises:
        UserError: no rows, a copied field that no row has, or a vocabulary that cannot be used.
        ValueError: the lists differ in length.
    """
    _check_rows(predictions, references, fields)
    scores = {
        "rouge_l": _compute("rouge", predictions, references)["rougeL"],
        "bleu": _compute("bleu", predictions, references)["bleu"],
        "chrf": _compute("chrf", predictions, references)["chrf"],
        "exact": _share(
            [p.strip() == r.strip() for p, r in zip(predictions, references, strict=True)]
        ),
    }
    for field in copied_fields:
        scores |= _copied_share(field, predictions, fields)
    for vocabulary, words in terms.items():
        scores |= _term_shares(vocabulary, words, predictions, references)
    return scores


def score_by_row(metric: str, predictions: list[str], references: list[str]) -> list[float]:
    """Each prediction against its reference, by a metric whose mean over rows is a score.

    Args:
        metric: `rouge_l` (F1, 0 to 1) or `chrf_row` (chrF2, 0 to 100).

    Raises:
        ValueError: the lists differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError("predictions and references must run over the same rows")
    if not predictions:
        return []
    module, key = {"rouge_l": ("rouge", "rougeL"), "chrf_row": ("chrf", "chrf")}[metric]
    return _compute(module, predictions, references, use_aggregator=False)[key]


@dataclass(frozen=True)
class MetricMeaning:
    """A metric in plain words.

    Attributes:
        label: short name.
        meaning: what it says, in one sentence.
        top: its greatest value; 1 or 100, for losses a large one.
        is_share: whether it is a share of rows, shown in per cent.
        less_is_better: as with losses.
        decimals: how many are shown, of what is not a share.
    """

    label: str
    meaning: str
    top: float = 1.0
    is_share: bool = False
    less_is_better: bool = False
    decimals: int = 2

    def show(self, value: float) -> str:
        """A value as people read it: "97.1%", "0.87" or "81.2"."""
        return f"{value:.1%}" if self.is_share else f"{value:.{self.decimals}f}"


TEXT_METRICS = {
    "rouge_l": MetricMeaning(
        "Shop's wording (ROUGE-L)",
        "How much of the shop's own text is found again, word for word and in the same order: "
        "1 is the same text, 0 has no word in common.",
    ),
    "bleu": MetricMeaning(
        "Shared phrases (BLEU)",
        "Runs of up to four words shared with the shop's own text; 100 is the same text.",
        top=100,
        decimals=1,
    ),
    "chrf": MetricMeaning(
        "Shared letters (chrF)",
        "Runs of up to six letters shared with the shop's own text; forgives word endings and "
        "suits every script. 100 is the same text.",
        top=100,
        decimals=1,
    ),
    "chrf_row": MetricMeaning(
        "Shared letters, by row (chrF)",
        "The same for each description by itself, and the mean of all.",
        top=100,
        decimals=1,
    ),
    "answer_loss": MetricMeaning(
        "Surprise at the shop's text (loss)",
        "How unlikely the model finds the shop's own text, a token in the mean, in nats; "
        "less is better.",
        top=10,
        less_is_better=True,
        decimals=3,
    ),
    "perplexity": MetricMeaning(
        "Perplexity",
        "Among how many equally likely tokens the model seems to choose; less is better.",
        top=100,
        less_is_better=True,
    ),
    "violations": MetricMeaning(
        "Broken rules",
        "Descriptions that break a rule of the trade, such as a banned phrase or an invented "
        "number; less is better.",
        is_share=True,
        less_is_better=True,
    ),
    "exact": MetricMeaning(
        "Same text",
        "Descriptions that equal the shop's own, letter by letter.",
        is_share=True,
    ),
}


def meaning_of(metric: str) -> MetricMeaning:
    """What a metric of `score` says; one that `score` does not know keeps its name."""
    kind, _, name = metric.partition("_")
    if kind == "copied":
        meaning = f"Descriptions that hold the product's {name}, letter by letter."
        return MetricMeaning(f"{name.capitalize()} copied", meaning, is_share=True)
    if kind == "term" and name.endswith("_any"):
        vocabulary = name.removesuffix("_any")
        meaning = f"Descriptions that name any term of the vocabulary “{vocabulary}” at all."
        return MetricMeaning(f"Any “{vocabulary}” term", meaning, is_share=True)
    if kind == "term":
        meaning = f"Descriptions that name the same “{name}” term as the shop's, and no other."
        return MetricMeaning(f"Right “{name}” term", meaning, is_share=True)
    return TEXT_METRICS.get(metric, MetricMeaning(metric, ""))


def _check_rows(predictions: list[str], *others: list[Any]) -> None:
    if not predictions:
        raise UserError(
            "There is no description to score.", "Hold out at least one row: data.held_out."
        )
    if any(len(other) != len(predictions) for other in others):
        raise ValueError("predictions, references and fields must run over the same rows")


def _compute(
    module: str, predictions: list[str], references: list[str], **options: Any
) -> dict[str, Any]:
    import evaluate

    # In memory and with an id of its own: runs at the same time share no file.
    metric = evaluate.load(str(MODULES / module), keep_in_memory=True, experiment_id=uuid4().hex)
    result: dict[str, Any] = metric.compute(
        predictions=predictions, references=references, **options
    )
    return result


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def _copied_share(
    field: str, predictions: list[str], fields: list[dict[str, str]]
) -> dict[str, float]:
    if not any(field in row for row in fields):
        raise UserError(
            f"evaluation.copied_fields names '{field}', which no row has.",
            f"The rows have: {', '.join(sorted(fields[0]))}.",
        )
    # An empty value stands in every text, so it would count as copied.
    rows = zip(predictions, fields, strict=True)
    hits = [row[field] in text for text, row in rows if row.get(field)]
    return {f"copied_{field}": _share(hits)} if hits else {}


def _term_shares(
    vocabulary: str, terms: list[str], predictions: list[str], references: list[str]
) -> dict[str, float]:
    pattern = _pattern_of(vocabulary, terms)
    written = [_named_terms(pattern, text) for text in predictions]
    expected = [_named_terms(pattern, text) for text in references]
    shares = {f"term_{vocabulary}_any": _share([bool(names) for names in written])}
    hits = [w == e for w, e in zip(written, expected, strict=True) if len(e) == 1]
    return {f"term_{vocabulary}": _share(hits), **shares} if hits else shares


def _pattern_of(vocabulary: str, terms: list[str]) -> re.Pattern[str]:
    key = f"evaluation.terms.{vocabulary}"
    if vocabulary.endswith("_any"):
        raise UserError(f"{key}: a vocabulary's name must not end in _any.", "Rename it.")
    spaced = [term.split() for term in terms]
    if not spaced or [] in spaced:
        raise UserError(f"{key} is empty or holds an empty term.", "List the words to look for.")
    longest_first = sorted(spaced, key=lambda words: -len(" ".join(words)))
    return re.compile("|".join(map(_whole_words, longest_first)), re.IGNORECASE)


def _whole_words(words: list[str]) -> str:
    """A pattern for the words in a row that does not match inside a longer word."""
    spaced_letter = rf"[^\W{UNSPACED}]"
    return rf"(?<!{spaced_letter})" + r"\s+".join(map(re.escape, words)) + rf"(?!{spaced_letter})"


def _named_terms(pattern: re.Pattern[str], text: str) -> set[str]:
    return {" ".join(match.split()).casefold() for match in pattern.findall(text)}
