"""Picture features on disk: computed once, reused by every epoch and every later training.

One safetensors file a picture, written whole under another name and then renamed, so several
runs can share a folder without a lock: whoever reads sees a whole file or none. A file that is
gone in the meantime costs time only, the features are computed again. So it is with a file whose
digest does not fit: a damaged one, or one that belongs to another picture.
"""

import contextlib
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmtune.models.vision import PictureFeatures

GIB = 1024**3
COARSE = 1.0  # seconds by which the time of a file may lag behind the clock
SPARE = GIB  # left free on the disk
DIGEST = "sha256"  # in the metadata of each file


def picture_key(picture: "Image") -> str:
    """SHA-256 over size and pixels of a decoded picture: the same picture in another file counts
    as the same."""
    digest = hashlib.sha256(f"{picture.mode} {picture.size}".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


def encoder_key(parts: dict[str, Any]) -> str:
    """16 hex digits over what else decides the features, see `layout.encoder_parts`."""
    text = repr(sorted((name, str(part)) for name, part in parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class FeatureCache:
    """The features of one encoder's pictures.

    Args:
        root: shared by all encoders.
        encoder: key of the encoder, see `encoder_key`.
        max_gib: of all files below `root`; the least recently used make room.
    """

    def __init__(self, root: Path, encoder: str, max_gib: float) -> None:
        self.root = root
        self.folder = root / encoder
        self.max_bytes = int(max_gib * GIB)
        self.begun = time.time() - COARSE
        self.refused = 0  # pictures for which there was no room
        self.damaged = 0  # files that were read and not used
        self._used: int | None = None
        self._lock = threading.Lock()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def read(self, key: str) -> "PictureFeatures | None":
        """A picture's features, mapped into memory; None if they are not there or damaged."""
        path = self._path(key)
        try:
            with safe_open(path, "pt") as file:
                features = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if (file.metadata() or {}).get(DIGEST) == self._digest(key, features):
                    return features
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            pass
        self.damaged += 1
        with contextlib.suppress(OSError):  # it may be another user's
            path.unlink()
        return None

    def _digest(self, key: str, features: "PictureFeatures") -> str:
        """SHA-256 over whose features they are, their names, dtypes, shapes and bytes."""
        digest = hashlib.sha256(f"{self.folder.name} {key}".encode())
        for name, tensor in sorted(features.items()):
            digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def write(self, key: str, features: "PictureFeatures") -> bool:
        """Store a picture's features, from any device.

        Returns:
            False if there is no room: they are computed again whenever they are needed.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in features.items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if not self._reserve(size):
            self.refused += 1
            return False
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        # Not by `save_file`, whose files nobody else may read.
        temporary.write_bytes(save(tensors, {DIGEST: self._digest(key, tensors)}))
        temporary.replace(path)
        return True

    def touch(self, key: str) -> None:
        """Mark as used, so that it is not among the first to go."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path(key))

    def _reserve(self, size: int) -> bool:
        """Make room for some bytes, without touching what this run has used."""
        with self._lock:
            if self._used is None:
                self.root.mkdir(parents=True, exist_ok=True)
                self._used = sum(stat.st_size for stat, _ in self._files())
            if shutil.disk_usage(self.root).free < size + SPARE:
                return False
            if self._used + size > self.max_bytes:
                self._evict(self._used + size - self.max_bytes)
            if self._used + size > self.max_bytes:
                return False
            self._used += size
            return True

    def _evict(self, needed: int) -> None:
        """Remove the least recently used files; a run that wanted them computes them again."""
        assert self._used is not None
        needed += self.max_bytes // 20  # so that not every picture looks through the folder
        for stat, path in sorted(self._files(), key=lambda file: file[0].st_mtime):
            if needed <= 0 or stat.st_mtime >= self.begun:
                break
            path.unlink(missing_ok=True)
            self._used -= stat.st_size
            needed -= stat.st_size

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        """Each file and its state. Another run renames and removes files meanwhile: those that
        are gone when looked at are left out."""
        for path in self.root.glob("*/*/*"):
            with contextlib.suppress(FileNotFoundError):
                yield path.stat(), path
