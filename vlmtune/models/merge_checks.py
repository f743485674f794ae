"""The proof that a merged model is the tuned model: the same outputs from the same inputs.

Outputs are compared on a few held-out rows with the catalog's own description as the answer, so
that all models judge the very same tokens (teacher forcing).
"""

import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlmtune.encoding import IGNORED, CatalogCollator, EncodedRow, encode_prompts, encode_row
from vlmtune.models.adapter import without_wrapper
from vlmtune.models.merge_record import MergeCheck
from vlmtune.sampling import draw_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import ProcessorMixin

# Logits are kept in the model's own dtype, which loses nothing: for a vocabulary of 152,000 in
# bf16 these rows take at most 8 * 128 * 152,000 * 2 bytes = 0.3 GB.
CHECKED_ROWS = 8
CHECKED_TOKENS = 128  # of each answer, from its beginning

# KL grows with the square of the distance: an adapter that changes four times what rounding does
# takes the model twice as far as rounding takes it back.
LEAST_CHANGE = 4
# Of what rounding noise does: one draw of it differs from another.
NOISE_ROOM = 2


@dataclass(frozen=True)
class Distance:
    """How far one model's outputs lie from another's on the same tokens.

    Attributes:
        tokens: how many tokens were compared.
        kl: mean Kullback-Leibler divergence KL(one || other) of the next token, in nats; NaN
            without tokens.
        agreement: share of tokens in whose place both expect the same token most.
    """

    tokens: int
    kl: float
    agreement: float


def pick_rows(rows: "Dataset") -> "Dataset":
    """A few rows, drawn over all groups."""
    return draw_rows(rows, CHECKED_ROWS)


def answer_logits(
    model: Any, processor: "ProcessorMixin", rows: "Dataset"
) -> Iterator[torch.Tensor]:
    """What a model expects in the place of each token of the rows' answers.

    Args:
        rows: with the columns `prompt`, `completion` and `images`.

    Yields:
        For each row logits of shape [tokens, vocabulary], on the host; at most CHECKED_TOKENS.
    """
    collator = CatalogCollator(processor=processor, completion_only_loss=True)
    model.eval()
    for row in rows:
        example = {name: row[name] for name in ("prompt", "completion", "images")}
        yield _answer_logits(model, collator([example]))


@torch.inference_mode()
def _answer_logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    labels = batch["labels"][0]
    answer = len(labels) - _answer_start(labels)
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    # PEFT's wrapper hides the parameters of the model's own forward.
    if "logits_to_keep" in inspect.signature(without_wrapper(model).forward).parameters:
        inputs["logits_to_keep"] = answer + 1  # those of a prompt with a large picture are many
    logits = model(**inputs, use_cache=False).logits[0]
    # Each position's logits are about the token after it. A copy, since a slice holds all of them.
    return logits[-answer - 1 : -1][:CHECKED_TOKENS].cpu().clone()


def _answer_start(labels: torch.Tensor) -> int:
    return int((labels != IGNORED).int().argmax())


def measure_distance(ones: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> Distance:
    """Compare two models' logits, row by row and token by token.

    Args:
        ones, others: logits of shape [tokens, vocabulary] for each row.
    """
    divergences: list[float] = []
    agreed = 0
    for one, other in zip(ones, others, strict=True):
        agreed += int((one.argmax(-1) == other.argmax(-1)).sum())
        divergences += [_divergence(*pair) for pair in zip(one, other, strict=True)]
    tokens = len(divergences)
    return Distance(
        tokens=tokens,
        kl=sum(divergences) / tokens if tokens else math.nan,
        agreement=agreed / tokens if tokens else math.nan,
    )


def _divergence(one: torch.Tensor, other: torch.Tensor) -> float:
    """KL(one || other) in nats, from logits of shape [vocabulary].

    In doubles: single precision would err by about 1e-6 over a large vocabulary.
    """
    log_p, log_q = (logits.double().log_softmax(-1) for logits in (one, other))
    return float((log_p.exp() * (log_p - log_q)).sum())


def check_adapter_works(change: Distance, noise: Distance) -> MergeCheck:
    """An adapter must change the base model's outputs by more than rounding the weights does.

    Args:
        change: from base and adapter to the base alone.
        noise: from base and adapter to the same with rounding noise in the weights.
    """
    return MergeCheck(
        name="adapter",
        wanted=f"a mean KL to the base model above {LEAST_CHANGE} times that of rounding noise, "
        f"{noise.kl:.3g}",
        found=_describe(change),
        met=change.kl > LEAST_CHANGE * noise.kl,
    )


def check_divergence(
    divergence: Distance, change: Distance, noise: Distance, max_relative_divergence: float
) -> MergeCheck:
    """The merged model, read back from disk, must say what base and adapter said.

    Args:
        divergence: from base and adapter to the merged model.
        change, noise: as in `check_adapter_works`.
        max_relative_divergence: what the mean KL may be as a share of the change, besides noise.
    """
    allowed = NOISE_ROOM * noise.kl + max_relative_divergence * change.kl
    return MergeCheck(
        name="divergence",
        wanted=f"a mean KL from base and adapter of at most {allowed:.3g}: {NOISE_ROOM} x "
        f"{noise.kl:.3g} of rounding noise + {max_relative_divergence:g} x {change.kl:.3g} of the "
        "adapter's change",
        found=_describe(divergence),
        met=divergence.kl <= allowed,
    )


def _describe(distance: Distance) -> str:
    return (
        f"{distance.kl:.3g}, with {1 - distance.agreement:.1%} of {distance.tokens:,} next tokens "
        "changed"
    )


def check_inputs(
    trained: "ProcessorMixin", stored: "ProcessorMixin", rows: "Dataset"
) -> list[MergeCheck]:
    """What the merged model will be given must be what the adapter was trained on.

    Args:
        trained: the processor of the training.
        stored: the one that was read back with the merged model.
        rows: with the columns `prompt`, `completion` and `images`.
    """
    training, serving = (
        CatalogCollator(processor=processor, completion_only_loss=True)
        for processor in (trained, stored)
    )
    encoded = served = 0
    for row in rows:
        ours = encode_row(training, row)
        encoded += _equal_rows(ours, encode_row(serving, row))
        served += _is_prompt_of(ours, encode_prompts(stored, [row["prompt"]], [row["images"]]))
    same_template = trained.chat_template == stored.chat_template
    return [
        MergeCheck(
            name="chat template",
            wanted="that of the training",
            found="the same" if same_template else "another one",
            met=same_template,
        ),
        _check_rows("processor", "the tensors of the training", encoded, len(rows)),
        _check_rows("served prompt", "the tokens and pixels of the training", served, len(rows)),
    ]


def _check_rows(name: str, wanted: str, found: int, rows: int) -> MergeCheck:
    return MergeCheck(
        name=name,
        wanted=f"{wanted} for all rows",
        found=f"{found} of {rows}",
        met=found == rows > 0,
    )


def _equal_rows(one: EncodedRow, other: EncodedRow) -> bool:
    return _equal(_tensors(one), _tensors(other))


def _tensors(row: EncodedRow) -> dict[str, torch.Tensor]:
    types = {} if row.token_types is None else {"token_types": row.token_types}
    return {"input_ids": row.input_ids, "labels": row.labels, **types, **row.pictures}


def _is_prompt_of(row: EncodedRow, request: Any) -> bool:
    """Whether a request is what stood before the answer when the row was trained on."""
    prompt = row.input_ids[: _answer_start(row.labels)]
    pictures = {name: request[name] for name in row.pictures if name in request}
    return torch.equal(request["input_ids"][0], prompt) and _equal(row.pictures, pictures)


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
