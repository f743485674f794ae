"""A folder that is ready to push: weights, processor, model card and receipt, and nothing else."""

import shutil
from pathlib import Path

from vlmtune.artifact import PICKLE_SUFFIXES
from vlmtune.files import link_or_copy

WEIGHTS = ".safetensors"
CARD, RECEIPT = "README.md", "receipt.json"  # what is written here, and so cannot be tested


def assemble_bundle(source: Path, card: str, target: Path, receipt: str | None = None) -> Path:
    """Lay out what is to be published. Weights are hard-linked where that is possible; what an
    editor may write to is copied, since a link would change the source with it.

    Args:
        source: folder of an adapter or a merged model.
        card: text of the model card.
        target: folder to make; an older one of the same name is replaced.
        receipt: text of its receipt.json; None makes none.

    Raises:
        ValueError: the source holds a file that may be a pickle.
    """
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        if path.suffix in PICKLE_SUFFIXES:
            raise ValueError(f"{path.name} may be a pickle; it is not published")
    if target.exists():
        shutil.rmtree(target)
    for path in files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == WEIGHTS:
            link_or_copy(path, copy)
        else:
            shutil.copyfile(path, copy)
    (target / CARD).write_text(card, encoding="utf-8")
    if receipt is not None:
        (target / RECEIPT).write_text(receipt, encoding="utf-8")
    return target
