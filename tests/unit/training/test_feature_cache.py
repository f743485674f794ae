"""Picture features on disk: whole, bounded, shared."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.unit.conftest import Demo
from vlmtune.artifact import PICKLE_SUFFIXES
from vlmtune.catalog.pictures import decode_picture
from vlmtune.models.base_model import BaseModelRef
from vlmtune.training.feature_cache import GIB, FeatureCache, encoder_key, picture_key

KIB = 1024 / GIB  # as a share of a GiB


def features(seed: int = 0) -> dict[str, torch.Tensor]:
    """Features of one picture, 1 KiB in bf16."""
    generator = torch.Generator().manual_seed(seed)
    return {"pooler_output": torch.randn(8, 64, generator=generator).bfloat16()}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Bit for bit, by another cache on the same folder, without a pickle, and by other users."""
    umask = os.umask(0o022)
    FeatureCache(tmp_path, "model", 1).write("ab12", features())
    os.umask(umask)
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.stat().st_mode & 0o777 == 0o644
    cache = FeatureCache(tmp_path, "model", 1)
    read = cache.read("ab12")
    assert "ab12" in cache and read is not None
    assert torch.equal(read["pooler_output"], features()["pooler_output"])
    assert not [path for path in tmp_path.rglob("*") if path.suffix in PICKLE_SUFFIXES]


def test_unknown_pictures_and_other_models(tmp_path: Path) -> None:
    """What another model made of the picture is nobody else's."""
    FeatureCache(tmp_path, "model", 1).write("ab12", features())
    assert FeatureCache(tmp_path, "other", 1).read("ab12") is None
    assert FeatureCache(tmp_path, "model", 1).read("cd34") is None


@pytest.mark.parametrize("damage", [b"", b"\x10", b"no safetensors at all"])
def test_a_damaged_file_is_not_taken_for_whole(tmp_path: Path, damage: bytes) -> None:
    """It goes, and the features can be written again."""
    cache = FeatureCache(tmp_path, "model", 1)
    cache.write("ab12", features())
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(damage)
    assert cache.read("ab12") is None and "ab12" not in cache
    assert cache.write("ab12", features()) and cache.read("ab12") is not None


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    """Of the header, of the digest, of the features."""
    cache = FeatureCache(tmp_path, "model", 1)
    cache.write("ab12", features())
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert cache.read("ab12") is None, at
    assert cache.damaged == len(whole)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert cache.read("ab12") is None, length
    path.write_bytes(whole)
    assert cache.read("ab12") is not None
    print(f"{len(whole)} flipped bytes and {len(whole)} cuts noticed")


def test_whole_files_in_the_wrong_place_are_not_used(tmp_path: Path) -> None:
    """Two that were swapped, and one of another encoder."""
    cache, other = FeatureCache(tmp_path, "model", 1), FeatureCache(tmp_path, "other", 1)
    for number, key in enumerate(("ab1", "ab2", "ab3")):
        cache.write(key, features(number))
    one, two, three = sorted((tmp_path / "model").rglob("*.safetensors"))
    one.rename(tmp_path / "one")
    two.rename(one)
    (tmp_path / "one").rename(two)
    other.write("ab3", features(3))
    next((tmp_path / "other").rglob("*.safetensors")).rename(three)
    assert [cache.read(key) for key in ("ab1", "ab2", "ab3")] == [None, None, None]
    assert cache.damaged == 3


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    """But nothing that this run has used."""
    old = FeatureCache(tmp_path, "model", 1)
    for number in range(4):
        old.write(f"old{number}", features(number))
        (path,) = tmp_path.rglob(f"old{number}.safetensors")
        os.utime(path, (time.time() - 100 + number,) * 2)
    cache = FeatureCache(tmp_path, "model", 7 * KIB)
    cache.touch("old0")
    assert all(cache.write(f"new{number}", features(number)) for number in range(3))
    assert "old0" in cache and "old1" not in cache
    assert all(f"new{number}" in cache for number in range(3))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) <= 8 * 1024


def test_a_full_cache_refuses(tmp_path: Path) -> None:
    """It counts what it refused, so that the log can say so."""
    cache = FeatureCache(tmp_path, "model", 2.5 * KIB)
    written = [cache.write(f"new{number}", features(number)) for number in range(4)]
    assert written == [True, True, False, False] and cache.refused == 2


def write_many(folder: Path, pictures: int = 50) -> None:
    """What a run does."""
    cache = FeatureCache(folder, "model", 1)
    for number in range(pictures):
        cache.write(f"ab{number}", features(number))


def test_two_runs_share_a_folder(tmp_path: Path) -> None:
    """Both write the same pictures at once; whoever reads sees whole files only."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    cache = FeatureCache(tmp_path, "model", 1)
    for number in range(50):
        read = cache.read(f"ab{number}")
        assert read is not None
        assert torch.equal(read["pooler_output"], features(number)["pooler_output"])
    assert not list(tmp_path.rglob("*.tmp"))


def test_files_of_another_run_come_and_go(tmp_path: Path) -> None:
    """Runs that begin while another writes count its files, of which many are being renamed."""
    other = multiprocessing.get_context("spawn").Process(target=write_many, args=(tmp_path, 1000))
    other.start()
    begun = 0
    while other.is_alive():
        begun += FeatureCache(tmp_path, "model", 1).write("cd", features())
    assert other.exitcode == 0 and begun > 10


def test_the_key_is_the_picture_itself(tmp_path: Path) -> None:
    """The same pixels in another file are the same picture, one pixel more is another."""
    picture = Image.effect_noise((40, 30), 50).convert("RGB")
    picture.save(tmp_path / "one.png")
    picture.save(tmp_path / "two.bmp")
    keys = {picture_key(Image.open(tmp_path / name)) for name in ("one.png", "two.bmp")}
    assert keys == {picture_key(picture)}
    other = picture.copy()
    other.putpixel((3, 3), (1, 2, 3))
    assert len(keys | {picture_key(other), picture_key(picture.transpose(2))}) == 3


def test_transparent_pictures_differ_by_the_colour_below(tmp_path: Path) -> None:
    """The key is made of what the vision tower will see."""
    Image.new("RGBA", (28, 28), (200, 10, 10, 90)).save(tmp_path / "glass.png")
    data = (tmp_path / "glass.png").read_bytes()
    keys = {
        picture_key(decode_picture(data, background=colour)) for colour in ("#ffffff", "#fffffe")
    }
    assert len(keys) == 2


def test_encoders_differ_by_everything_that_shapes_features(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by itself makes another key."""
    from importlib import metadata

    from vlmtune.models.quantized import load_model
    from vlmtune.training.layout import encoder_parts

    model, processor = demo.model()
    plan = demo.plan()

    def key(model: Any = model, base: Any = demo.base) -> str:
        return encoder_key(encoder_parts(model, processor, base, plan))

    keys = {"as it is": key()}
    assert key() == keys["as it is"]
    keys["base"] = key(base=BaseModelRef(id="shop/base", commit="a" * 40))
    tower_too = {**demo.config.quantization, "llm_int8_skip_modules": ["lm_head"]}
    keys["4-bit tower"] = key(load_model(demo.base.id, None, demo.config.model, tower_too))
    plain = load_model(demo.base.id, None, demo.config.model, {})
    keys["bf16 model"] = key(plain)
    keys["dtype"] = key(plain.half())
    attention = model.config.vision_config._attn_implementation
    model.config.vision_config._attn_implementation = "eager"
    keys["attention"] = key()
    model.config.vision_config._attn_implementation = attention
    limits = processor.image_processor.size
    processor.image_processor.size = {**dict(limits), "longest_edge": 14112}
    keys["largest picture"] = key()
    processor.image_processor.size = limits
    processor.image_processor.do_normalize = False
    keys["normalisation"] = key()
    processor.image_processor.do_normalize = True
    version = metadata.version
    for library in ("torch", "transformers", "bitsandbytes", "torchvision", "pillow"):

        def other(name: str, changed: str = library) -> str:
            return version(name) + "x" * (name == changed)

        with monkeypatch.context() as patched:
            patched.setattr(metadata, "version", other)
            keys[library] = key()
    with monkeypatch.context() as patched:
        patched.setattr("vlmtune.training.layout.code_version", lambda module: "other code")
        keys["code"] = key()
    with monkeypatch.context() as patched:
        patched.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "another"})
        keys["device"] = key()
    assert len(set(keys.values())) == len(keys), keys
