"""How likely a model finds the catalog's own descriptions: the loss on the answer alone."""

import sys
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vlmtune.encoding import IGNORED, CatalogCollator

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin


@torch.no_grad()
def answer_losses(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    rows: "Dataset",
    batch_size: int,
    label: str,
) -> list[float]:
    """Mean loss, in nats, of the tokens of each row's completion, given its prompt and pictures.

    Args:
        rows: with `prompt`, `completion` and `images`.
        label: shown beside the progress bar.
    """
    model.eval()
    collator = CatalogCollator(processor=processor, completion_only_loss=True)
    batches = DataLoader(rows, batch_size=batch_size, collate_fn=collator)
    losses: list[float] = []
    for batch in tqdm(batches, f"loss of the {label} model", disable=not sys.stderr.isatty()):
        inputs = {name: each.to(model.device) for name, each in batch.items()}
        labels = inputs.pop("labels")[:, 1:]
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        targets = labels != IGNORED
        # Only targets in fp32: the logits of a whole batch would be gigabytes.
        found = cross_entropy(logits[targets].float(), labels[targets], reduction="none")
        places = targets.nonzero()[:, 0]
        sums = torch.zeros(len(labels), device=found.device).index_add_(0, places, found)
        losses += (sums / targets.sum(dim=1)).tolist()
    return losses
