"""What was stored is what is loaded: one flipped byte, one file too few or too many is noticed."""

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from zenml.types import HTMLString

from materializers.adapter import AdapterMaterializer
from materializers.catalog import CatalogMaterializer
from materializers.descriptions import DescriptionsMaterializer
from materializers.evaluation_report import EvaluationReportMaterializer
from materializers.examples import ExamplesMaterializer
from materializers.facts import FactsMaterializer
from materializers.folders import FolderMaterializer
from materializers.ledger import RowLedgerMaterializer
from materializers.merge_result import MergeResultMaterializer
from materializers.page import PageMaterializer
from materializers.promotion_decision import PromotionDecisionMaterializer
from materializers.publication import PublicationMaterializer
from materializers.quantized_model import QuantizedModelMaterializer
from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.config.data import DataConfig, HeldOutConfig, PromptConfig
from vlmtune.config.loading import load_config
from vlmtune.describing.results import DescribingRecord, Descriptions, table_schema
from vlmtune.errors import UserError
from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.manifest import MANIFEST
from vlmtune.models.adapter import Adapter
from vlmtune.models.base_model import resolve_base_model
from vlmtune.models.merge_record import MergeResult
from vlmtune.models.quantized import QuantizedModel, quantize
from vlmtune.prompting import Examples, format_examples
from vlmtune.publishing.publication import Publication
from vlmtune.publishing.same_files import NotWhatWasTested

ROOT = Path(__file__).resolve().parents[2]
Stored = tuple[FolderMaterializer, type[Any]]


def examples_of(catalog: Catalog, ledger: RowLedger) -> Examples:
    """The six rows as conversations."""
    data = DataConfig(
        source="x",
        columns={"image": "i", "name": "n", "category": "c", "description": "d"},
        held_out=HeldOutConfig(fraction=0.5),
        max_quarantine=0.2,
    )
    return format_examples(catalog, ledger, data, PromptConfig(template="Describe {name}."))


@pytest.fixture(scope="module")
def quantized() -> QuantizedModel:
    """The demo's base in 4 bits."""
    config = load_config(ROOT / "configs" / "demo.yaml")
    model = config.model.model_copy(update={"id": str(ROOT / "demo" / "model")})
    return quantize(resolve_base_model(model), model, config.quantization)


def descriptions() -> Descriptions:
    """A described product."""
    import pyarrow

    row = {
        **{"row_id": "a", "place": "row 1", "name": "Mug", "description": "A mug."},
        **{"flags": ["html"], "problems": ["HTML"], "model": "merged", "seconds": 0.5},
    }
    record = DescribingRecord(
        **{"model": "merged", "engine": "transformers", "rows": 1, "new_rows": 1},
        **{"flagged_rows": 1, "flags": {"html": 1}, "quarantined_rows": 0},
        **{"new_tokens": 3, "seconds": 2.0},
    )
    return Descriptions(pyarrow.Table.from_pylist([row], schema=table_schema(["name"])), record)


@pytest.fixture
def artifacts(
    catalog: Catalog,
    ledger: RowLedger,
    quantized: QuantizedModel,
    adapter: Adapter,
    merged: MergeResult,
    tmp_path: Path,
) -> list[Stored]:
    """One artifact of each kind, stored with its pages as ZenML does it."""
    report = EvaluationReport(
        rows=0, held_out_rows=0, metrics={"base": {"bleu": 1.0}}, seconds={}, predictions=[]
    )
    kinds: list[tuple[type[FolderMaterializer], Any]] = [
        (CatalogMaterializer, catalog),
        (RowLedgerMaterializer, ledger),
        (ExamplesMaterializer, examples_of(catalog, ledger)),
        (QuantizedModelMaterializer, quantized),
        (AdapterMaterializer, adapter),
        (EvaluationReportMaterializer, report),
        (
            PromotionDecisionMaterializer,
            PromotionDecision(subject="tuned", verdict="failed", checks=[]),
        ),
        (MergeResultMaterializer, merged),
        (PublicationMaterializer, Publication(status="ready", cards={"adapter": "# card"})),
        (DescriptionsMaterializer, descriptions()),
        (PageMaterializer, HTMLString("<p>Mug</p>")),
        (FactsMaterializer, {"gate.min_groups": "too few"}),
    ]
    assert {kind for kind, _ in kinds} == set(FolderMaterializer.__subclasses__())
    stored = []
    for kind, data in kinds:
        folder = tmp_path / "store" / kind.__name__
        folder.mkdir(parents=True)
        materializer = kind(uri=str(folder))
        materializer.save(data)
        materializer.save_visualizations(data)
        materializer.load(type(data))
        stored.append((materializer, type(data)))
    return stored


def files_of(stored: Stored) -> list[Path]:
    """All files of an artifact, its manifest among them."""
    return [path for path in sorted(Path(stored[0].uri).rglob("*")) if path.is_file()]


@contextmanager
def changed(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    """Within the block the file has another content; it keeps its inode, as after an edit."""
    content = path.read_bytes()
    path.write_bytes(change(content))
    try:
        yield
    finally:
        path.write_bytes(content)


def flip(content: bytes, at: int) -> bytes:
    """Another bit in one byte."""
    flipped = bytearray(content)
    flipped[at] ^= 1
    return bytes(flipped)


def refusal(stored: Stored) -> UserError:
    """The error of loading an artifact."""
    materializer, kind = stored
    with pytest.raises(UserError) as caught:
        materializer.load(kind)
    assert "--no-cache" in caught.value.mend and caught.value.exit_code == 2
    return caught.value


def test_each_flipped_byte_is_noticed(artifacts: list[Stored]) -> None:
    """In each file of each kind: its first byte, one in the middle, its last."""
    flipped = 0
    for stored in artifacts:
        for path in files_of(stored):
            size = path.stat().st_size
            for at in sorted({0, size // 2, size - 1} if size else set()):
                with changed(path, lambda content, at=at: flip(content, at)):
                    problem = refusal(stored).problem
                assert path.name == MANIFEST or f"{path} is changed" in problem
                flipped += 1
    for materializer, kind in artifacts:
        materializer.load(kind)  # whole again
    print(f"{flipped} bytes flipped in {len(artifacts)} kinds of artifact, all noticed")
    assert flipped > 100


def test_missing_truncated_and_added_files_are_noticed(artifacts: list[Stored]) -> None:
    """Each file gone or cut, a file that was not there, and the whole folder gone."""
    for stored in artifacts:
        folder = Path(stored[0].uri)
        for path in files_of(stored):
            if path.stat().st_size:
                with changed(path, lambda content: content[:-1]):
                    assert f"{path} is changed" in refusal(stored).problem
            moved = path.rename(folder.parent / "moved")
            assert f"{path} is missing" in refusal(stored).problem
            moved.rename(path)
        added = folder / "chat_template.json"
        if not added.exists():
            added.write_text("{}")
            assert f"{added} is added" in refusal(stored).problem
        folder.rename(folder.with_name(f"{folder.name}.moved"))
        assert f"the artifact at {folder} is missing" in refusal(stored).problem


def test_files_have_the_mode_that_the_umask_gives(artifacts: list[Stored], tmp_path: Path) -> None:
    """Weights too, which are written through temporary files that nobody else may read."""
    plain, folder = tmp_path / "plain", tmp_path / "folder"
    plain.touch()
    folder.mkdir()
    for stored in artifacts:
        for path in Path(stored[0].uri).rglob("*"):
            wanted = folder if path.is_dir() else plain
            assert stat.filemode(path.stat().st_mode) == stat.filemode(wanted.stat().st_mode), path


def test_a_merged_model_that_is_not_the_recorded_one_is_not_stored(
    merged: MergeResult, tmp_path: Path
) -> None:
    """Changed between the merge and the store: no manifest vouches for it, and nothing is left."""
    assert merged.folder is not None
    path = merged.folder / "model.safetensors"
    path.write_bytes(flip(path.read_bytes(), -1))
    (tmp_path / "store").mkdir()
    with pytest.raises(NotWhatWasTested, match=r"model\.safetensors \(changed\)"):
        MergeResultMaterializer(uri=str(tmp_path / "store")).save(merged)
    assert not list((tmp_path / "store").iterdir())
