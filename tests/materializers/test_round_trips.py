"""Each artifact comes back as it went in, looks right, and is whole or not there at all."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
from PIL import Image
from safetensors.numpy import save_file

from materializers.adapter import AdapterMaterializer
from materializers.catalog import CatalogMaterializer
from materializers.descriptions import DescriptionsMaterializer
from materializers.evaluation_report import EvaluationReportMaterializer
from materializers.examples import ExamplesMaterializer
from materializers.ledger import RowLedgerMaterializer
from materializers.merge_result import MergeResultMaterializer
from materializers.promotion_decision import PromotionDecisionMaterializer
from materializers.publication import PublicationMaterializer
from materializers.quantized_model import QuantizedModelMaterializer
from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger, SharedValue
from vlmtune.config.data import DataConfig, HeldOutConfig, PromptConfig
from vlmtune.config.loading import load_config
from vlmtune.describing.results import DescribingRecord, Descriptions, table_schema
from vlmtune.evaluation.gate import GateCheck, PromotionDecision
from vlmtune.evaluation.results import EvaluationReport, Prediction
from vlmtune.models.adapter import Adapter, BaseWeightsInAdapter
from vlmtune.models.base_model import resolve_base_model
from vlmtune.models.merge_record import MergeResult
from vlmtune.prompting import format_examples
from vlmtune.publishing.hub import PushedRepo
from vlmtune.publishing.publication import Publication
from vlmtune.revision import hash_files

ROOT = Path(__file__).resolve().parents[2]
RoundTrip = Callable[[type, Any], Any]


def test_catalog_keeps_every_byte(catalog: Catalog, stored: RoundTrip) -> None:
    """Rows, encoded pictures and origin survive."""
    back = stored(CatalogMaterializer, catalog)
    for given, read in zip(catalog.rows, back.rows, strict=True):
        assert [each["bytes"] for each in read["images"]] == [
            each["bytes"] for each in given["images"]
        ]
        assert read | {"images": None} == given | {"images": None}
    assert (back.source, back.version) == (catalog.source, catalog.version)
    assert back.background == catalog.background
    assert back.pictures(1) == catalog.pictures(1)


def test_catalog_hash_sees_pictures_and_texts(catalog: Catalog, tmp_path: Path) -> None:
    """One changed letter or pixel is another catalog; stored and loaded again it is the same."""
    materializer = CatalogMaterializer(uri=str(tmp_path))
    same = replace(catalog, rows=catalog.rows.select(range(len(catalog.rows))))
    assert materializer.compute_content_hash(catalog) == materializer.compute_content_hash(same)
    for change in (
        lambda row: {"description": row["description"] + "!"},
        lambda row: {"images": [each | {"bytes": each["bytes"] + b"\0"} for each in row["images"]]},
        lambda row: {"images": row["images"] * 2},
    ):
        changed = replace(catalog, rows=catalog.rows.map(change, features=catalog.rows.features))
        assert materializer.compute_content_hash(changed) != materializer.compute_content_hash(
            catalog
        )


def test_contact_sheet_is_a_picture(catalog: Catalog, tmp_path: Path) -> None:
    """It is what ZenML shows for a catalog."""
    (address,) = CatalogMaterializer(uri=str(tmp_path)).save_visualizations(catalog)
    sheet = Image.open(io.BytesIO(Path(address).read_bytes()))
    assert sheet.width > 100 and len(sheet.convert("RGB").getcolors(100_000)) > 3


def test_ledger_keeps_its_lines_and_the_quarantine(
    ledger: RowLedger, stored: RoundTrip, tmp_path: Path
) -> None:
    """What was counted comes back as well, and tells a later run what to carry on from."""
    shared = [SharedValue("image", "logo.png", "1" * 16, 40, 12, 3, ties=False)]
    given = replace(ledger, previous="an id", inputs="a fingerprint", shared=shared)
    back = stored(RowLedgerMaterializer, given)
    assert list(back.lines) == list(given.lines)
    assert back.counts == given.counts
    names = ("catalog_name", "catalog_version", "previous", "inputs", "shared")
    assert [getattr(back, name) for name in names] == [getattr(given, name) for name in names]
    assert (back.pictures_decoded, back.pictures_known) == (7, 0)
    (row,) = (back.quarantine / "metadata.jsonl").read_text().splitlines()
    (picture,) = json.loads(row)["_pictures"]
    assert (back.quarantine / picture).read_bytes() == (given.quarantine / picture).read_bytes()
    told = RowLedgerMaterializer(uri=str(tmp_path)).extract_metadata(back)
    assert (told["quarantined"], told["previous"], told["rows_read"]) == (1, "an id", 7)
    assert "previous" not in RowLedgerMaterializer(uri="").extract_metadata(ledger)


def test_ledger_hash_sees_its_lines_and_its_origin(ledger: RowLedger) -> None:
    """A row on another side is another ledger; how much had to be decoded for it is not."""
    hash_of = RowLedgerMaterializer(uri="").compute_content_hash
    assert hash_of(replace(ledger, pictures_decoded=0, pictures_known=7)) == hash_of(ledger)
    assert hash_of(replace(ledger, previous="an id")) != hash_of(ledger)
    moved = ledger.lines.map(lambda line: {"side": "train"}, features=ledger.lines.features)
    assert hash_of(replace(ledger, lines=moved)) != hash_of(ledger)
    told = ledger.lines.map(lambda line: {"reasons": []}, features=ledger.lines.features)
    assert hash_of(replace(ledger, lines=told)) != hash_of(ledger)


def test_a_catalog_without_rows_can_be_stored(
    catalog: Catalog, stored: RoundTrip, tmp_path: Path
) -> None:
    """So that the report on why all rows are in quarantine can be written after it."""
    empty = replace(catalog, rows=catalog.rows.select([]))
    back = stored(CatalogMaterializer, empty)
    assert len(back.rows) == 0 and back.rows.features == catalog.rows.features
    materializer = CatalogMaterializer(uri=str(tmp_path))
    assert materializer.compute_content_hash(back) == materializer.compute_content_hash(empty)
    assert materializer.extract_metadata(back)["rows"] == 0
    materializer.save_visualizations(back)


def test_examples_keep_their_sides(catalog: Catalog, ledger: RowLedger, stored: RoundTrip) -> None:
    """Both tables come back; a changed template is another artifact, and holds no picture."""
    data = DataConfig(
        source="x",
        columns={"image": "i", "name": "n", "category": "c", "description": "d"},
        held_out=HeldOutConfig(fraction=0.5),
        max_quarantine=0.2,
    )
    examples = format_examples(catalog, ledger, data, PromptConfig(template="Describe {name}."))
    back = stored(ExamplesMaterializer, examples)
    assert list(back.train) == list(examples.train)
    assert list(back.held_out) == list(examples.held_out)
    other = format_examples(catalog, ledger, data, PromptConfig(template="Please describe {name}."))
    hash_of = ExamplesMaterializer(uri="").compute_content_hash
    assert hash_of(examples) == hash_of(back) != hash_of(other)
    assert "images" not in back.train.column_names


def test_adapter_comes_back_with_its_record(adapter: Adapter, stored: RoundTrip) -> None:
    """Equal bits, equal hash, equal word on its base."""
    back = stored(AdapterMaterializer, adapter)
    assert back.record == adapter.record
    assert back.content_hash == adapter.content_hash


def test_adapter_with_base_weights_is_refused(adapter: Adapter, stored: RoundTrip) -> None:
    """Nothing is left in the artifact's folder that could be taken for an adapter."""
    weights = {
        "q_proj.lora_A.weight": numpy.ones((2, 4), dtype="float32"),
        "q_proj.base_layer.weight": numpy.ones((4, 4), dtype="float32"),
    }
    save_file(weights, adapter.folder / "adapter_model.safetensors")
    with pytest.raises(BaseWeightsInAdapter, match="base_layer"):
        stored(AdapterMaterializer, adapter)
    assert not list((adapter.folder.parent / "artifact").iterdir())


def test_a_save_that_fails_half_way_leaves_nothing(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up after the rows are written: no later run takes them for whole."""

    def disk_full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", disk_full)
    with pytest.raises(OSError, match="No space"):
        CatalogMaterializer(uri=str(tmp_path / "catalog")).save(catalog)
    assert not list((tmp_path / "catalog").glob("*"))


def test_quantized_model_is_loaded_in_place(stored: RoundTrip, tmp_path: Path) -> None:
    """The demo's base in 4 bits: the very folder it was written to gives the same logits."""
    import torch

    from vlmtune.models.quantized import QuantizedModel, quantize

    config = load_config(ROOT / "configs" / "demo.yaml")
    model_config = config.model.model_copy(update={"id": str(ROOT / "demo" / "model")})
    base = resolve_base_model(model_config)
    made = quantize(base, model_config, config.quantization)
    back = stored(QuantizedModelMaterializer, made)
    assert isinstance(back, QuantizedModel)
    assert back.base == base and back.folder == tmp_path / "artifact"
    model, processor = back.load(model_config)
    tokens = processor.tokenizer("Describe this product.", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**tokens).logits, made.model(**tokens).logits)
    linear = model.model.language_model.layers[0].self_attn.q_proj
    assert type(linear).__name__ == "Linear4bit"
    assert not linear.support_avx512bf16_for_cpu


def test_a_merged_model_is_not_written_again(merged: MergeResult, stored: RoundTrip) -> None:
    """Its files get a second name, and stay when the first one goes."""
    back = stored(MergeResultMaterializer, merged)
    assert back.record == merged.record and merged.folder is not None
    assert all((back.folder / name).samefile(merged.folder / name) for name in back.record.files)
    shutil.rmtree(merged.folder)
    assert hash_files(back.folder) == back.record.files


def test_a_merge_shows_its_checks(merged: MergeResult, tmp_path: Path) -> None:
    """As a table, and in the metadata what each found."""
    materializer = MergeResultMaterializer(uri=str(tmp_path))
    (address,) = materializer.save_visualizations(merged)
    page = Path(address).read_text()
    assert page.startswith("**merged**\n\n| check |")
    assert "| divergence | at most 0.002 | 1e-05 | yes |" in page
    metadata = materializer.extract_metadata(merged)
    assert (metadata["status"], metadata["base"]) == ("merged", "owner/model")
    assert metadata["checks"] == {"divergence": "1e-05"}


def test_a_merge_that_was_skipped_or_failed_has_no_folder(
    merged: MergeResult, stored: RoundTrip, tmp_path: Path
) -> None:
    """Only the record is stored, with the reason."""
    facts = {"status": "failed", "reason": "divergence: too far", "files": {}}
    failed = MergeResult(merged.record.model_copy(update=facts))
    back = stored(MergeResultMaterializer, failed)
    assert back == failed
    stored_files = sorted(path.name for path in (tmp_path / "artifact").iterdir())
    assert stored_files == ["files.json", "record.json"]
    (address,) = MergeResultMaterializer(uri=str(tmp_path)).save_visualizations(failed)
    assert Path(address).read_text().startswith("**failed: divergence: too far**")


def test_reports_and_publications_are_json(stored: RoundTrip, tmp_path: Path) -> None:
    """Read back equal, and readable without this project."""
    prediction = Prediction(
        row_id="a",
        group="g",
        fields={"name": "Mug"},
        reference="r",
        texts={"base": "b", "tuned": "t"},
        scores={"base": 0.0, "tuned": 1.0},
    )
    report = EvaluationReport(
        rows=1,
        held_out_rows=1,
        metrics={"base": {"rouge_l": 0.0}, "tuned": {"rouge_l": 1.0}},
        seconds={"base": 1.0, "tuned": 1.0},
        predictions=[prediction],
    )
    assert stored(EvaluationReportMaterializer, report) == report
    assert json.loads((tmp_path / "artifact" / "record.json").read_text())["rows"] == 1
    table = pandas.read_parquet(tmp_path / "artifact" / "predictions.parquet")
    assert table[["row_id", "tuned", "tuned_score"]].to_numpy().tolist() == [["a", "t", 1.0]]
    pushed = PushedRepo(
        repo_id="a/b", url="https://hub/a/b", commit="c" * 40, tag="v3", files={"README.md": "f"}
    )
    publication = Publication(
        status="unpublished",
        reason="merged: no room",
        repos={"adapter": pushed},
        cards={"adapter": "# card"},
        receipts={"adapter": "{}"},
    )
    folder = tmp_path / "publication"
    folder.mkdir()
    materializer = PublicationMaterializer(uri=str(folder))
    materializer.save(publication)
    assert materializer.load(Publication) == publication
    assert materializer.extract_metadata(publication) == {
        "status": "unpublished",
        "reason": "merged: no room",
        "adapter": "https://hub/a/b",
        "adapter_tag": "v3",
    }


def test_the_same_findings_are_the_same_artifact(stored: RoundTrip, tmp_path: Path) -> None:
    """Whatever time they took; so what comes after an evaluation is not done again."""
    report = EvaluationReport(
        rows=0, held_out_rows=0, metrics={"base": {"bleu": 1.0}}, seconds={}, predictions=[]
    )
    materializer = EvaluationReportMaterializer(uri=str(tmp_path))
    slower = report.model_copy(update={"seconds": {"base": 9.0}})
    better = report.model_copy(update={"metrics": {"base": {"bleu": 2.0}}})
    hashes = [materializer.compute_content_hash(each) for each in (report, slower, better)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_decisions_are_json(stored: RoundTrip, tmp_path: Path) -> None:
    """With all that was asked, as a table, too."""
    check = GateCheck(name="floor", wanted="much", found="little", met=False, otherwise="failed")
    decision = PromotionDecision(
        subject="tuned", verdict="failed", checks=[check], champion="3", adapter_files={"a": "b"}
    )
    assert stored(PromotionDecisionMaterializer, decision) == decision
    materializer = PromotionDecisionMaterializer(uri=str(tmp_path))
    assert materializer.extract_metadata(decision) == {
        "subject": "tuned",
        "verdict": "failed",
        "reasons": ["floor: much, found little"],
    }
    (page,) = materializer.save_visualizations(decision)
    assert "| floor | much | little | not met |" in Path(page).read_text()
    changed = decision.model_copy(update={"champion": "4"})
    hashes = {materializer.compute_content_hash(each) for each in (decision, changed)}
    assert len(hashes) == 2


def test_descriptions_keep_every_text(stored: RoundTrip, tmp_path: Path) -> None:
    """Flags, fields and how it went; an empty table too."""
    import pyarrow

    row = {
        **{"row_id": "a", "place": "row 1", "name": "杯子", "description": "A mug.\n"},
        **{"flags": ["html"], "problems": ["HTML: '<b>'"], "model": "merged", "seconds": 0.5},
    }
    record = DescribingRecord(
        **{"model": "merged", "engine": "transformers", "rows": 1, "new_rows": 1},
        **{"flagged_rows": 1, "flags": {"html": 1}, "quarantined_rows": 2},
        **{"new_tokens": 3, "seconds": 2.0},
    )
    table = pyarrow.Table.from_pylist([row], schema=table_schema(["name"]))
    back = stored(DescriptionsMaterializer, Descriptions(table, record))
    assert back.table.to_pylist() == [row] and back.table.schema == table.schema
    assert back.record == record
    told = DescriptionsMaterializer(uri=str(tmp_path)).extract_metadata(back)
    assert (told["flagged_rows"], told["rows_per_second"], told["model"]) == (1, 0.5, "merged")
