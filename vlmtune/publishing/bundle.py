"""A folder that is ready to push: weights, processor, model card and receipt, and nothing else."""

import shutil
from pathlib import Path

from vlmtune.artifact import PICKLE_SUFFIXES
from vlmtune.files import link_or_copy

CARD, RECEIPT = "README.md", "receipt.json"  # what is written here, and so cannot be tested


def assemble_bundle(source: Path, card: str, target: Path, receipt: str | None = None) -> Path:
    """Lay out what is to be published. Files are hard-linked where that is possible.

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
        link_or_copy(path, copy)
    _write(target / CARD, card)
    if receipt is not None:
        _write(target / RECEIPT, receipt)
    return target


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # never write through a hard link
    path.write_text(text, encoding="utf-8")
