"""From rows to the catalog and its ledger: formats, pictures, ids, the split carried on."""

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
from PIL import Image

from tests.picture_server import Answer, PictureServer
from vlmtune.catalog.catalog import Catalog, hash_rows, iterate_batches
from vlmtune.catalog.ledger import RowLedger
from vlmtune.catalog.loading import PreviousCatalog, load_catalog
from vlmtune.errors import UserError

MakeCatalog = Callable[..., Path]
MakeRows = Callable[[int], list[dict[str, Any]]]
MakeData = Callable[..., Any]

CATALOGS = Path(__file__).resolve().parents[4] / "shared" / "catalogs"


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A PNG that looks like no other."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype="uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def texts(catalog: Catalog) -> list[dict[str, Any]]:
    """All columns but the pictures."""
    return list(catalog.texts())


def codes(line: dict[str, Any]) -> list[str]:
    """The codes of a line's reasons."""
    return [reason["code"] for reason in line["reasons"]]


# Formats and texts ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_formats_give_the_same_rows(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData, kind: str
) -> None:
    """Ids, texts and pictures do not depend on the metadata's format."""
    rows = make_rows(4)
    rows[1]["Product Name"] = "007"
    rows[2]["description"] = 'Two lines,\n"quoted", with a comma and 3.50 €'
    rows[3]["Category"] = "NA"
    table, _ = load_catalog(make_data(make_catalog(rows, "csv", "a")), "v")
    other, _ = load_catalog(make_data(make_catalog(rows, kind, "b")), "v")
    assert texts(other) == texts(table)
    assert table.rows["name"] == ["Mug 1", "007", "Mug 3", "Mug 4"]
    assert table.rows["description"][2] == rows[2]["description"]
    assert hash_rows(iterate_batches(other.rows)) == hash_rows(iterate_batches(table.rows))


def test_pictures_are_handed_on_as_they_are(make_catalog: MakeCatalog, make_data: MakeData) -> None:
    """The bytes of the file, not of a re-encoded picture."""
    folder = make_catalog()
    catalog, ledger = load_catalog(make_data(folder), "v")
    assert catalog.pictures(1) == [(folder / "images/2.png").read_bytes()]
    assert (catalog.source, catalog.version) == (str(folder), "v")
    assert (ledger.catalog_name, ledger.catalog_version) == (str(folder), "v")
    (picture,) = catalog.open_pictures(1)
    assert (picture.mode, picture.size) == ("RGB", (24, 16))


def test_transparent_pictures_are_opened_on_the_configs_background(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """The stored bytes keep their transparency."""
    folder = make_catalog(make_rows(1))
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(folder / "images/1.png")
    catalog, ledger = load_catalog(make_data(folder, background="#0000ff"), "v")
    assert catalog.open_pictures(0)[0].getpixel((3, 3)) == (0, 0, 255)
    assert codes(ledger.lines[0]) == ["alpha_flattened"]


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "كوب من الخزف الأزرق، مصنوع يدويًا",
        "ספל קרמיקה כחול",
        "手作りの青い陶器マグカップ。",
        "蓝色陶瓷马克杯",
        "Mug 🫖 {name} %s \\n 5 < 6",
    ],
    ids=["100k", "arabic", "hebrew", "japanese", "chinese", "emoji-braces"],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_any_text_is_kept(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData, text: str, kind: str
) -> None:
    """Long descriptions and other scripts arrive letter by letter."""
    rows = make_rows(1)
    rows[0] |= {"description": text, "Product Name": text}
    catalog, ledger = load_catalog(make_data(make_catalog(rows, kind)), "v")
    (row,) = texts(catalog)
    assert row["description"] == row["name"] == text
    (line,) = ledger.lines
    assert (line["decision"], line["characters"]) == ("kept", len(text))
    assert len(line["label"]) <= 120


def test_repaired_texts_are_in_the_catalog(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """The catalog has the cleaned text, the ledger says what was done to it."""
    rows = make_rows(1)
    rows[0]["description"] = "<p>A mug &amp; a&#32;saucer.</p>"
    catalog, ledger = load_catalog(make_data(make_catalog(rows)), "v")
    assert catalog.rows["description"] == ["A mug & a saucer."]
    assert ledger.lines["decision"] == ["repaired"]
    assert set(codes(ledger.lines[0])) == {"html_removed", "entities_decoded"}


def test_nullable_and_list_columns_of_parquet(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Missing values of pandas' nullable types are empty cells; lists are text."""
    folder = make_catalog(make_rows(2), "parquet")
    table = pandas.DataFrame(make_rows(2))
    table["sku"] = pandas.array([5, None], dtype="Int64")
    table["tags"] = [["a", "b"], ["c", "d"]]
    table.to_parquet(folder / "metadata.parquet")
    columns = {"image": "file_name", "description": "description", "sku": "sku", "tags": "tags"}
    catalog, ledger = load_catalog(make_data(folder, columns=columns), "v")
    assert texts(catalog)[0]["sku"] == "5"
    assert texts(catalog)[0]["tags"] == "['a', 'b']"
    (reason,) = ledger.lines[1]["reasons"]
    assert reason["code"] == "missing_text" and "'sku' is empty" in reason["message"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_nested_columns(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData, kind: str
) -> None:
    """Dots lead into objects, structs and lists."""
    (row,) = make_rows(1)
    make_catalog([row])
    nested = {
        "product": {"title": "Mug", "texts": [{"lang": "en", "body": "A mug."}]},
        "media": [{"src": "images/1.png"}],
    }
    folder = make_catalog([nested], kind, name="catalog")
    (folder / "metadata.csv").unlink()
    columns = {
        "image": "media.0.src",
        "name": "product.title",
        "description": "product.texts.0.body",
    }
    catalog, _ = load_catalog(make_data(folder, columns=columns), "v")
    (read,) = texts(catalog)
    assert (read["name"], read["description"]) == ("Mug", "A mug.")


# Pictures of a row ----------------------------------------------------------------------------

TWO = {"pictures": {"max_count": 2}}


def several_pictures(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same two pictures of one row in each of the ways to write them: cells and settings."""
    files = [(folder / f"images/{number}.png").read_bytes() for number in (1, 2)]
    names = ["images/1.png", "images/2.png"]
    return {
        "columns": (dict(zip("ab", names, strict=True)), {"image": ["a", "b"]}),
        "list": ({"pics": names}, {"image": "pics"}),
        "separator": ({"pics": "|".join(names)}, {"image": "pics"}),
        "bytes": (dict(zip("ab", files, strict=True)), {"image": ["a", "b"]}),
        "structs": ({"pics": [{"bytes": each, "path": None} for each in files]}, {"image": "pics"}),
        "mixed structs": (
            {"pics": [{"bytes": files[0], "path": "x.png"}, {"bytes": None, "path": names[1]}]},
            {"image": "pics"},
        ),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["columns", "list", "separator", "bytes", "structs", "mixed structs"]
)
def test_several_pictures(make_catalog: MakeCatalog, make_data: MakeData, kind: str) -> None:
    """However they are written, the row has both in order; each has its place in the ledger."""
    folder = make_catalog()
    (folder / "metadata.csv").unlink()
    cells, image = several_pictures(folder, kind)
    row = cells | {"name": "Mug", "description": "A mug."}
    pandas.DataFrame([row]).to_parquet(folder / "metadata.parquet")
    columns = image | {"name": "name", "description": "description"}
    data = make_data(folder, columns=columns, contract=TWO, picture_separator="|")
    catalog, ledger = load_catalog(data, "v")
    files = [(folder / f"images/{number}.png").read_bytes() for number in (1, 2)]
    assert catalog.pictures(0) == files
    assert [(each["width"], each["height"]) for each in ledger.lines[0]["pictures"]] == [
        (24, 16),
        (24, 16),
    ]
    assert len({each["sha256"] for each in ledger.lines[0]["pictures"]}) == 2


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("./images/1.png|images/gone.png", "picture_not_found"),
        ("./images/1.png|images/2.png|images/3.png", "too_many_pictures"),
        ("|", "missing_picture"),
    ],
)
def test_a_row_lacks_or_exceeds_its_pictures(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData, cell: str, expected: str
) -> None:
    """One missing picture of two quarantines the row: half a row is another one."""
    folder = make_catalog()
    rows = make_rows(1)
    rows[0]["file_name"] = cell
    make_catalog(rows)
    data = make_data(folder, contract=TWO, picture_separator="|")
    catalog, ledger = load_catalog(data, "v")
    assert codes(ledger.lines[0]) == [expected]
    assert len(catalog.rows) == 0


def test_twelve_megapixels_are_kept(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """A phone's picture; the ledger has the size before anything resizes it."""
    folder = make_catalog(make_rows(1))
    Image.new("RGB", (4000, 3000), "red").save(folder / "images/1.png", "JPEG")
    _, ledger = load_catalog(make_data(folder), "v")
    (line,) = ledger.lines
    assert line["decision"] == "kept"
    assert (line["pictures"][0]["width"], line["pictures"][0]["height"]) == (4000, 3000)


@pytest.mark.parametrize(("allowed", "decision"), [(True, "kept"), (False, "quarantined")])
def test_picture_by_address(
    make_catalog: MakeCatalog,
    make_rows: MakeRows,
    make_data: MakeData,
    allowed: bool,
    decision: str,
) -> None:
    """Fetched like any other; from a private network only if the config says so."""
    rows = make_rows(1)
    with PictureServer() as server:
        server.answers["/mug.png"] = Answer(noise(1))
        rows[0]["file_name"] = server.url("/mug.png")
        downloads = {"allow_private": allowed, "attempts": 1}
        data = make_data(make_catalog(rows), downloads=downloads)
        catalog, ledger = load_catalog(data, "v")
        assert len(server.requests) == (1 if allowed else 0)
    assert ledger.lines["decision"] == [decision]
    if allowed:
        assert catalog.pictures(0) == [noise(1)]
    else:
        assert codes(ledger.lines[0]) == ["download_failed"]


# Row ids --------------------------------------------------------------------------------------


def ids_by_name(data: Any) -> dict[str, str]:
    """Name -> row id, of the rows in the catalog."""
    return {row["name"]: row["row_id"] for row in texts(load_catalog(data, "v")[0])}


def test_row_ids_follow_the_row(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Neither the order nor the description of rows, nor their files' names, change their ids."""
    rows = make_rows(4)
    before = ids_by_name(make_data(make_catalog(rows, name="a")))
    folder = make_catalog([], name="b")
    for number, row in enumerate(rows):
        original = (folder.parent / "a" / row["file_name"]).read_bytes()
        row |= {"file_name": f"images/new{number}.png", "description": "Rewritten."}
        (folder / row["file_name"]).write_bytes(original)
    make_catalog(rows[::-1], name="b")
    assert ids_by_name(make_data(folder)) == before
    assert len(set(before.values())) == 4


def test_row_id_of_a_catalog_without_other_fields(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Where only pictures and descriptions are mapped, the picture is the row."""
    columns = {"image": "file_name", "description": "description"}
    rows = make_rows(2)
    data = make_data(make_catalog(rows), columns=columns)
    before = load_catalog(data, "v")[0].rows["row_id"]
    for row in rows:
        row |= {"description": "Rewritten.", "Category": "Office"}
    make_catalog(rows)
    assert load_catalog(data, "v")[0].rows["row_id"] == before
    assert len(set(before)) == 2


def test_row_id_changes_with_picture_and_fields(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Another picture or another field is another row; the others keep their ids."""
    rows = make_rows(3)
    data = make_data(make_catalog(rows))
    before = ids_by_name(data)
    (Path(data.source) / "images/1.png").write_bytes(noise(1))
    rows[1]["Category"] = "Office"
    make_catalog(rows)
    after = ids_by_name(data)
    assert after["Mug 1"] != before["Mug 1"]
    assert after["Mug 2"] != before["Mug 2"]
    assert after["Mug 3"] == before["Mug 3"]


def test_equal_rows_get_a_suffix(
    make_catalog: MakeCatalog, make_rows: MakeRows, make_data: MakeData
) -> None:
    """Rows that are equal but for the description stay apart, in one group."""
    (row,) = make_rows(1)
    rows = [row | {"description": f"Mug {number}."} for number in range(3)]
    catalog, ledger = load_catalog(make_data(make_catalog(rows)), "v")
    ids = catalog.rows["row_id"]
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"] == ledger.lines["row_id"]
    assert len(set(ledger.lines["group"])) == 1


# The split carried on -------------------------------------------------------------------------


@pytest.fixture
def grow(make_catalog: MakeCatalog, make_rows: MakeRows) -> Callable[[int], Path]:
    """The catalog with so many rows whose pictures are all different."""

    def make(count: int) -> Path:
        folder = make_catalog([])
        for number in range(1, count + 1):
            (folder / f"images/{number}.png").write_bytes(noise(number))
        return make_catalog(make_rows(count)[::-1])

    return make


def sides(ledger: RowLedger) -> dict[str, str]:
    """Row id -> side."""
    return dict(zip(ledger.lines["row_id"], ledger.lines["side"], strict=True))


def test_a_catalog_that_grew_keeps_its_split(
    grow: Callable[[int], Path], make_data: MakeData, tmp_path: Path
) -> None:
    """Each known row stays on its side, and only new pictures are decoded."""
    work = tmp_path / "work"
    data = make_data(grow(40), held_out={"fraction": 0.5})
    catalog, ledger = load_catalog(data, "v1", work_dir=work)
    assert (ledger.pictures_decoded, ledger.pictures_known) == (40, 0)
    assert not any(ledger.lines["carried"])
    grow(44)
    # Another fraction would send rows elsewhere, if the split were made anew.
    data = data.model_copy(update={"held_out": data.held_out.model_copy(update={"fraction": 0.1})})
    previous = PreviousCatalog(catalog, ledger, "first")
    _, grown = load_catalog(data, "v2", work_dir=work, previous=previous)
    before, after = sides(ledger), sides(grown)
    assert {row: after[row] for row in before} == before
    assert set(before.values()) == {"train", "held_out"}
    assert len(after) == 44
    assert (grown.pictures_decoded, grown.pictures_known) == (4, 40)
    assert grown.previous == "first"
    carried = {line["row_id"] for line in grown.lines if line["carried"]}
    assert carried == set(before)


def test_without_a_work_folder_nothing_is_known(
    grow: Callable[[int], Path], make_data: MakeData
) -> None:
    """Each reading decodes all pictures."""
    data = make_data(grow(4))
    for _ in range(2):
        _, ledger = load_catalog(data, "v")
        assert (ledger.pictures_decoded, ledger.pictures_known) == (4, 0)


def test_the_split_is_carried_on_from_stored_artifacts_with_other_fields(
    grow: Callable[[int], Path], make_data: MakeData
) -> None:
    """A previous catalog that lacks today's `held_out.by` still gives its sides."""
    folder = grow(30)
    columns = {"image": "file_name", "name": "Product Name", "description": "description"}
    data = make_data(folder, columns=columns, held_out={"fraction": 0.5})
    catalog, ledger = load_catalog(data, "v1")
    by = make_data(folder, columns=columns, held_out={"fraction": 0.5, "by": "name"})
    _, again = load_catalog(by, "v2", previous=PreviousCatalog(catalog, ledger))
    assert sides(again) == sides(ledger)


# The real catalogs ----------------------------------------------------------------------------

real = pytest.mark.skipif(not CATALOGS.is_dir(), reason="no ../shared/catalogs beside the checkout")


@pytest.mark.catalogs
@real
def test_eshop_is_kept_whole(make_data: MakeData) -> None:
    """A good catalog: no row is touched, and both sides have some."""
    catalog, ledger = load_catalog(make_data(CATALOGS / "eshop"), "v")
    counts = ledger.counts
    assert (counts["rows_read"], counts["kept"]) == (101, 101)
    assert counts["train"] + counts["held_out"] == len(catalog.rows) == 101
    ledger.require_acceptable(0.0)


@pytest.mark.catalogs
@real
def test_spree_loses_its_variants(make_data: MakeData) -> None:
    """Rows without texts are quarantined, which stops a run at the default share."""
    _, ledger = load_catalog(make_data(CATALOGS / "spree"), "v")
    assert ledger.counts["rows_read"] == 211
    assert (ledger.counts["kept"], ledger.counts["quarantined"]) == (37, 174)
    assert ledger.reason_counts == {"missing_text": 174, "missing_picture": 87}
    ledger.require_acceptable(0.83)
    with pytest.raises(UserError, match=r"174 of 211 rows are quarantined \(82\.5%.*82\.0%"):
        ledger.require_acceptable(0.82)


@pytest.mark.catalogs
@real
def test_jpetstore_is_repaired(make_data: MakeData) -> None:
    """HTML goes; two products with one GIF or one text are on one side, whatever else differs."""
    catalog, ledger = load_catalog(make_data(CATALOGS / "jpetstore"), "v")
    assert ledger.counts["repaired"] == len(catalog.rows) == 16
    assert not [text for text in catalog.rows["description"] if "<" in text or "&" in text]
    groups: dict[str, set[str]] = {}
    for line in ledger.lines:
        groups.setdefault(line["pictures"][0]["name"], set()).add(line["group"])
    assert len(groups) == 15  # one GIF is named twice
    assert all(len(found) == 1 for found in groups.values())
    assert groups["images/fish1.gif"] == groups["images/fish4.gif"]
    assert [(value.kind, value.rows) for value in ledger.shared] == [
        ("description", 2),
        ("image", 2),
    ]


@pytest.mark.catalogs
@real
@pytest.mark.parametrize("by", [None, "slug", ["slug", "sku"]])
def test_spree_with_its_variants(make_data: MakeData, tmp_path: Path, by: Any) -> None:
    """Variants with a name of their own and their product's text: none has it from training."""
    shutil.copytree(CATALOGS / "spree" / "images", tmp_path / "images")
    with (CATALOGS / "spree" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["file_name"]]
    texts = {row["slug"]: row for row in rows if row["description"]}
    rows = [row for row in rows if row["slug"] in texts]
    for row in rows:
        product = texts[row["slug"]]
        row["Product Name"] = f"{product['Product Name']} {row['option']}".strip()
        row |= {name: product[name] for name in ("Category", "description")}
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    columns = {name: name for name in ("slug", "sku", "description")}
    columns |= {"image": "file_name", "name": "Product Name"}
    held_out = {"fraction": 0.3, "by": by}
    catalog, ledger = load_catalog(make_data(tmp_path, columns=columns, held_out=held_out), "v")
    assert len(catalog.rows) == len(rows) > 100
    by_side = {
        side: {
            row["description"]
            for row, own in zip(rows, ledger.lines["side"], strict=True)
            if own == side
        }
        for side in ("train", "held_out")
    }
    assert not by_side["train"] & by_side["held_out"] and all(by_side.values())
    assert ledger.counts["held_out_sharing_description"] == 0


UNREADABLE = ("quarantined", ["picture_unreadable"])
FLAT, TURNED = ("repaired", ["alpha_flattened"]), ("repaired", ["picture_rotated"])
FIRST, COLOURS = ("repaired", ["first_frame_taken"]), ("repaired", ["colours_converted"])
KEPT: tuple[str, list[str]] = ("kept", [])
HOSTILE = {
    "16bit.cropped.tif": COLOURS,
    "1_trns.png": FLAT,
    "avif_hopper.avif": KEPT,
    "avif_star.avifs": ("repaired", ["alpha_flattened", "first_frame_taken"]),
    "avif_transparency.avif": FLAT,
    "broken.png": UNREADABLE,
    "broken_data_stream.png": UNREADABLE,
    "decompression_bomb.gif": UNREADABLE,
    "decompression_bomb.ico": UNREADABLE,
    "decompression_bomb_extents.gif": FIRST,
    "exif_typeerror.jpg": KEPT,
    "frozenpond.mpo": FIRST,
    "hopper.ico": KEPT,
    "hopper.ppm": KEPT,
    "hopper.psd": KEPT,
    "hopper_bad_exif.jpg": KEPT,
    "hopper_gray.jpg": KEPT,
    "hopper_mask.png": FLAT,
    "hopper_orientation_3.jpg": TURNED,
    "hopper_orientation_6.jpg": TURNED,
    "hopper_orientation_6.webp": TURNED,
    "i_trns.png": ("repaired", ["colours_converted", "alpha_flattened"]),
    "icc_profile_big.jpg": KEPT,
    "invalid-exif.jpg": KEPT,
    "iss634.apng": FIRST,
    "iss634.gif": FIRST,
    "iss634.webp": FIRST,
    "l_trns.png": FLAT,
    "p_trns_single.png": FLAT,
    "pil_sample_cmyk.jpg": COLOURS,
    "sugarshack_no_data.mpo": FIRST,
    "test-card-lossless.jp2": KEPT,
    "tiff_16bit_RGB.tiff": COLOURS,
    "transparent.gif": FLAT,
    "transparent.png": FLAT,
    "transparent.webp": FLAT,
    "transparent_background_text.png": FLAT,
    "truncated_app14.jpg": KEPT,
    "truncated_image.png": UNREADABLE,
    "truncated_jpeg.jpg": UNREADABLE,
    "xmp_tags_orientation.png": TURNED,
}


@pytest.mark.catalogs
@real
def test_each_hostile_picture_has_its_decision(make_data: MakeData, tmp_path: Path) -> None:
    """Pillow's own collection of odd and hostile files, each as a row of one catalog."""
    shutil.copytree(CATALOGS / "pillow_hostile" / "images", tmp_path / "images")
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "Product Name", "Category", "description"])
        table.writerows([f"images/{name}", name, "Picture", "A picture."] for name in names)
    catalog, ledger = load_catalog(make_data(tmp_path), "v")
    found = {line["label"]: (line["decision"], codes(line)) for line in ledger.lines}
    assert found == HOSTILE
    for row in range(len(catalog.rows)):
        (picture,) = catalog.open_pictures(row)
        assert picture.mode == "RGB"
