"""A folder that is ready to push: weights, processor and model card, and nothing else."""

import shutil
from pathlib import Path

from vlmtune.artifact import PICKLE_SUFFIXES
from vlmtune.files import link_or_copy


def assemble_bundle(source: Path, card: str, target: Path) -> Path:
    """Lay out what is to be published. Files are hard-linked where that is possible.

    Args:
        source: folder of an adapter or a merged model.
        card: text of the model card.
        target: folder to make; an older one of the same name is replaced.

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
    readme = target / "README.md"
    readme.unlink(missing_ok=True)  # never write through a hard link
    readme.write_text(card, encoding="utf-8")
    return target
