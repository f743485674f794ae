"""What is published: the source's files and the card, and never a pickle."""

from pathlib import Path

import pytest

from vlmtune.publishing.bundle import assemble_bundle


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    (folder / "README.md").write_text("the source's own")
    (folder / "sub/vocab.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Relative name -> text of all files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_bundle_is_the_source_with_the_card(source: Path, tmp_path: Path) -> None:
    """All files in their places, the card as README; the source is as it was."""
    before = contents(source)
    bundle = assemble_bundle(source, "# Müg\n", tmp_path / "publish/adapter")
    assert bundle == tmp_path / "publish/adapter"
    assert contents(bundle) == before | {"README.md": "# Müg\n"}
    assert contents(source) == before


def test_receipt_lies_beside_the_card(source: Path, tmp_path: Path) -> None:
    """A receipt of its own takes the place of one in the source, which stays as it was."""
    (source / "receipt.json").write_text("old")
    bundle = assemble_bundle(source, "card", tmp_path / "bundle", '{"kind": "adapter"}\n')
    assert (bundle / "receipt.json").read_text() == '{"kind": "adapter"}\n'
    assert (source / "receipt.json").read_text() == "old"


def test_weights_are_not_copied(source: Path, tmp_path: Path) -> None:
    """Large files share the disk's blocks with the source."""
    bundle = assemble_bundle(source, "card", tmp_path / "bundle")
    assert (bundle / "model.safetensors").samefile(source / "model.safetensors")
    assert not (bundle / "README.md").samefile(source / "README.md")


def test_an_edit_of_the_bundle_leaves_the_source(source: Path, tmp_path: Path) -> None:
    """What an editor may write to is a file of its own."""
    bundle = assemble_bundle(source, "card", tmp_path / "bundle")
    (bundle / "sub/vocab.json").write_text("edited")
    assert contents(source)["sub/vocab.json"] == "{}"


def test_without_hard_links(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no hard links, files are copied."""

    def refuse(*arguments: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    bundle = assemble_bundle(source, "card", tmp_path / "bundle")
    assert not (bundle / "model.safetensors").samefile(source / "model.safetensors")
    assert contents(bundle) == contents(source) | {"README.md": "card"}


def test_older_bundle_is_replaced(source: Path, tmp_path: Path) -> None:
    """Nothing of an older bundle is left, and its files in the source are untouched."""
    target = tmp_path / "bundle"
    assemble_bundle(source, "old", target)
    (target / "stray.json").write_text("{}")
    (source / "sub/vocab.json").unlink()
    assemble_bundle(source, "new", target)
    assert contents(target) == {"model.safetensors": "weights", "README.md": "new"}
    assert contents(source)["README.md"] == "the source's own"


@pytest.mark.parametrize("name", ["model.bin", "sub/state.pt", "x.pth", "x.pkl", "x.ckpt"])
def test_pickles_are_refused(source: Path, tmp_path: Path, name: str) -> None:
    """A file that may be a pickle stops it before anything is laid out or removed."""
    target = tmp_path / "bundle"
    assemble_bundle(source, "old", target)
    before = contents(target)
    (source / name).write_text("")
    with pytest.raises(ValueError, match=f"{Path(name).name} may be a pickle"):
        assemble_bundle(source, "new", target)
    assert contents(target) == before
