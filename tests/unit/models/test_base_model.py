"""A base model is pinned, and a folder that lacks a part says which."""

from pathlib import Path

import pytest

from vlmtune.config.model import ModelConfig
from vlmtune.errors import UserError
from vlmtune.models.base_model import BaseModelRef, require_unchanged, resolve_base_model


def test_folder_is_pinned_by_content(model_folder: Path) -> None:
    """The reference changes with any file of the folder."""
    config = ModelConfig(id=str(model_folder))
    before = resolve_base_model(config)
    assert before.commit is None
    assert before.revision == f"sha256:{before.content_hash}"
    (model_folder / "tokenizer.json").write_text("[]")
    assert resolve_base_model(config).content_hash != before.content_hash


def test_full_commit_is_taken_as_it_is() -> None:
    """A commit of a Hub model needs no network."""
    base = resolve_base_model(ModelConfig(id="shop/base", revision="a" * 40))
    assert base == BaseModelRef(id="shop/base", commit="a" * 40)
    assert base.revision == "a" * 40


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "weights"),
        ("processor_config.json", "a processor"),
        ("tokenizer.json", "a tokenizer"),
    ],
)
def test_missing_part(model_folder: Path, name: str, word: str) -> None:
    """Each part that is missing is named."""
    (model_folder / name).unlink()
    with pytest.raises(UserError, match=f"{model_folder} lacks {word}"):
        resolve_base_model(ModelConfig(id=str(model_folder)))


def test_missing_folder(tmp_path: Path) -> None:
    """A folder that is not there names the key."""
    with pytest.raises(UserError, match=r"no such model folder: .*none\. Set model\.id\."):
        resolve_base_model(ModelConfig(id=str(tmp_path / "none")))


def test_change_during_a_run(model_folder: Path) -> None:
    """A folder that was changed after it was pinned is refused; a Hub commit cannot change."""
    base = resolve_base_model(ModelConfig(id=str(model_folder)))
    require_unchanged(base)
    require_unchanged(BaseModelRef(id="shop/base", commit="a" * 40))
    (model_folder / "model.safetensors").write_text("other")
    with pytest.raises(UserError, match="no longer those that this run began with"):
        require_unchanged(base)
