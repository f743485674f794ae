"""What an unknown catalog's columns mean is guessed, and the config that is written loads."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from PIL import Image

from orchestration.init_config import config_text, default_output, print_guess, write_config
from vlmtune.catalog.contract import Contract
from vlmtune.catalog.encodings import find_encoding
from vlmtune.catalog.starter.guess import CatalogGuess, guess_catalog
from vlmtune.catalog.starter.sample import ROWS
from vlmtune.config.loading import load_config
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
CATALOGS = ROOT.parent / "shared" / "catalogs"
LIKE, DEMO = ROOT / "configs" / "qwen2vl_7b.yaml", ROOT / "configs" / "demo.yaml"
MakeCatalog = Callable[..., Path]
Row = dict[str, Any]

GERMAN = [
    (
        "Becher",
        "Küche",
        "Ein großer Becher aus weißem Ton, der für den Frühstückstisch gemacht ist.",
    ),
    ("Löffel", "Küche", "Ein kleiner Löffel aus Holz, mit dem sich Müsli und Joghurt essen lässt."),
    ("Stühlchen", "Möbel", "Ein niedriger Stuhl für Kinder, den man überall hin mitnehmen kann."),
    (
        "Bürste",
        "Haushalt",
        "Eine Bürste mit weichen Borsten, die auch für Gläser gut geeignet ist.",
    ),
]
GERMAN_ROWS = [
    {"Bild": f"bilder/{n}.jpg", "Titel": title, "Kategorie": kind, "Beschreibung": text}
    for n, (title, kind, text) in enumerate(GERMAN)
]
GERMAN_COLUMNS = {
    "image": "Bild",
    "name": "Titel",
    "category": "Kategorie",
    "description": "Beschreibung",
}


def written(guess: CatalogGuess, folder: Path, like: Path = LIKE) -> FinetuneConfig:
    """The config for a guess, written and loaded."""
    output = folder / "starter.yaml"
    write_config(guess, like, output, force=True)
    return load_config(output)


def described(rows: int, **pictures: Callable[[int], Any]) -> list[Row]:
    """Rows with a title, a description and whatever names the pictures."""
    return [
        {name: make(number) for name, make in pictures.items()}
        | {"title": f"Mug {number}", "description": f"Mug {number} is a mug made of clay."}
        for number in range(rows)
    ]


def columns_of(catalog: Path) -> dict[str, Any]:
    """Field -> column, as guessed."""
    return guess_catalog(catalog).columns


@pytest.mark.catalogs
@pytest.mark.parametrize("table", ["metadata.csv", "catalog.jsonl"])
@pytest.mark.parametrize("name", ["eshop", "spree", "jpetstore"])
def test_real_catalogs(name: str, table: str, tmp_path: Path) -> None:
    """Three shops' catalogs, with other columns that could be taken for these."""
    if not (CATALOGS / name).is_dir():
        pytest.skip(f"../shared/catalogs/{name} is not here")
    source = CATALOGS / name / table if table == "catalog.jsonl" else CATALOGS / name
    config = written(guess_catalog(source), tmp_path)
    expected = {
        "image": "file_name",
        "name": "Product Name",
        "category": "Category",
        "description": "description",
    }
    assert {field: config.data.columns[field] for field in expected} == expected
    assert config.data.source == str(source)
    assert config.data.held_out.by == "name"
    assert ("brand" in config.data.columns) == (name == "eshop")


# Which columns -------------------------------------------------------------------------------


def test_nested_values(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """Dotted names lead into a jsonl table's objects, and numbers into its lists."""
    rows = [
        {
            "id": number,
            "texts": None
            if number == 2
            else {"title": f"Mug {number}", "description": "A mug " * 5},
            "media": {"images": [{"url": f"https://shop.example/{number}.jpg?w=9"}, {"url": None}]},
        }
        for number in range(4)
    ]
    guess = guess_catalog(make_catalog(rows, "jsonl"))
    assert guess.columns == {
        "image": ["media.images.0.url", "media.images.1.url"],
        "name": "texts.title",
        "description": "texts.description",
    }
    assert guess.others == ["id"]
    assert guess.most_pictures == 1
    assert written(guess, tmp_path).data.columns == guess.columns


def test_several_picture_columns(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """Numbered columns are one field, in the order of their numbers, empty ones too."""
    rows = [
        {
            "image_10": "",
            "image_2": f"images/{number}b.png" if number else "",
            "image_1": f"images/{number}a.png",
            "image_alt_1": "A mug on a table",
            "name": f"Mug {number}",
            "description": "A mug for tea, and for coffee too.",
        }
        for number in range(3)
    ]
    guess = guess_catalog(make_catalog(rows))
    assert guess.columns["image"] == ["image_1", "image_2", "image_10"]
    assert guess.others == ["image_alt_1"]
    config = written(guess, tmp_path)
    assert config.data.columns["image"] == ["image_1", "image_2", "image_10"]
    assert config.data.contract.pictures.max_count == 2


@pytest.mark.parametrize("separator", ["|", ";", ", ", ","])
def test_several_paths_in_a_cell(make_catalog: MakeCatalog, tmp_path: Path, separator: str) -> None:
    """The separator is found, and the rows' pictures are allowed for."""
    rows = described(3, pics=lambda n: separator.join(["a.jpg", "b.jpg", "c.jpg"][: n + 1]))
    data = written(guess_catalog(make_catalog(rows)), tmp_path).data
    assert data.columns["image"] == "pics"
    assert data.picture_separator == separator
    assert data.contract.pictures.max_count == 3


def test_separator_in_an_address(make_catalog: MakeCatalog) -> None:
    """A comma in an address separates nothing."""
    rows = described(3, image_url=lambda n: f"https://cdn.example/w_9,h_9/{n}.jpg")
    assert guess_catalog(make_catalog(rows)).separator is None
    rows = described(3, image_url=lambda n: f"https://cdn.example/{n},https://cdn.example/b{n}")
    assert guess_catalog(make_catalog(rows, name="two")).separator == ","


def test_list_of_pictures(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """A list in a cell is one column; three pictures a row are then allowed."""
    rows = described(3, photos=lambda n: ["a.jpg", "b.jpg", "c.jpg"][: n + 1])
    data = written(guess_catalog(make_catalog(rows, "jsonl")), tmp_path).data
    assert (data.columns["image"], data.contract.pictures.max_count) == ("photos", 3)


@pytest.mark.parametrize(
    ("name", "address", "is_found"),
    [
        ("image_url", "https://shop.example/picture?id={}", True),
        ("Produktbild", "http://shop.example/{}", True),
        ("link", "https://shop.example/{}.webp#top", True),
        ("link", "https://shop.example/mugs/{}", False),
    ],
)
def test_addresses(make_catalog: MakeCatalog, name: str, address: str, is_found: bool) -> None:
    """Addresses are pictures by their column's name or by their end; other links are not."""
    catalog = make_catalog(described(3, **{name: lambda n: address.format(n)}))
    if is_found:
        assert columns_of(catalog)["image"] == name
    else:
        with pytest.raises(UserError, match="no column looks like pictures"):
            guess_catalog(catalog)


def test_pictures_at_hand_come_first(make_catalog: MakeCatalog) -> None:
    """Files that are there come before addresses, these before files that are not."""
    here: Callable[[int], str] = lambda n: f"images/{n}.png"  # noqa: E731
    there: Callable[[int], str] = lambda n: f"https://shop.example/{n}.png"  # noqa: E731
    catalog = make_catalog(described(2, image_url=there, thumbnail=here, file_name=here))
    assert columns_of(catalog)["image"] == "file_name"
    shutil.rmtree(catalog / "images")
    assert columns_of(catalog)["image"] == "image_url"


@pytest.mark.parametrize("is_struct", [False, True])
def test_embedded_pictures(tmp_path: Path, is_struct: bool) -> None:
    """Bytes in a parquet table, bare or as Hugging Face has them, whatever the column is called."""
    Image.new("RGB", (8, 8)).save(tmp_path / "mug.png")
    data = (tmp_path / "mug.png").read_bytes()
    cell = {"bytes": data, "path": None} if is_struct else data
    table = tmp_path / "mugs.parquet"
    pandas.DataFrame(described(3, jpg=lambda _: cell)).to_parquet(table)
    guess = guess_catalog(table)
    assert guess.columns == {"image": "jpg", "name": "title", "description": "description"}
    assert written(guess, tmp_path).data.source == str(table)


def test_german_names_and_semicolons(tmp_path: Path) -> None:
    """A table as a German spreadsheet saves it."""
    table = tmp_path / "Artikel.csv"
    with table.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(GERMAN_ROWS[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(GERMAN_ROWS)
    guess = guess_catalog(table)
    assert (guess.columns, guess.encoding) == (GERMAN_COLUMNS, "utf-8")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["Nombre", "Categoría", "Descripción", "Marca"], "name category description brand"),
        (
            ["Nom du produit", "Catégorie", "Description", "Marque"],
            "name category description brand",
        ),
        (["productName", "productType", "bodyHtml", "vendor"], "name category description brand"),
        (["商品名", "カテゴリ", "商品説明", "ブランド"], "name category description brand"),
        (["Название", "Категория", "Описание", "Бренд"], "name category description brand"),
    ],
)
def test_names_of_columns(make_catalog: MakeCatalog, columns: list[str], expected: str) -> None:
    """In several languages and ways of writing."""
    if columns[0] == "Nom du produit":
        columns = ["Nom", *columns[1:]]
    texts = ["Mug {}", "Kitchen", "Mug {} is a mug made of clay.", "Clay & Co"]
    rows = [
        {"file_name": f"{n}.jpg"}
        | {name: text.format(n) for name, text in zip(columns, texts, strict=True)}
        for n in range(3)
    ]
    found = columns_of(make_catalog(rows))
    assert found == {"image": "file_name"} | dict(zip(expected.split(), columns, strict=True))


def test_description_without_a_telling_name(make_catalog: MakeCatalog) -> None:
    """The longest texts that differ are taken; keys, digests and one text for all are not."""
    rows = [
        {
            "file_name": f"{n}.jpg",
            "digest": f"{n:x}" * 128,
            "terms": "Sold by us, and sent within a week wherever you are in the whole of Europe.",
            "f1": f"Mug {n} is made of clay, holds half a litre and may be put into the oven.",
            "f2": f"Mug {n}, of clay",
        }
        for n in range(1, 10)
    ]
    assert columns_of(make_catalog(rows))["description"] == "f1"


def test_long_description_comes_before_a_short_one(make_catalog: MakeCatalog) -> None:
    """Of several columns with a telling name the one with more text is taken."""
    rows = described(3, image=lambda n: f"{n}.jpg", long_description=lambda n: f"{n} mugs. " * 20)
    assert columns_of(make_catalog(rows))["description"] == "long_description"
    rows = described(
        3, image=lambda n: f"{n}.jpg", meta_description=lambda n: f"{n}. Mugs of clay!" * 2
    )
    assert columns_of(make_catalog(rows, name="meta"))["description"] == "description"


def test_columns_that_are_no_name_or_category(make_catalog: MakeCatalog) -> None:
    """A brand's name is no product's, a seller is no name, and a number no category."""
    rows = [
        {
            "image": f"{n}.jpg",
            "brand name": "Clay & Co",
            "seller_name": "Us",
            "image_title": f"Photo {n}",
            "category": n % 3,
            "description": f"Mug {n} is a mug made of clay.",
        }
        for n in range(30)
    ]
    assert columns_of(make_catalog(rows)) == {
        "image": "image",
        "brand": "brand name",
        "description": "description",
    }


def test_brand_that_is_mostly_empty(make_catalog: MakeCatalog) -> None:
    """It is suggested, not mapped: rows without one would be quarantined."""
    rows = described(5, image=lambda n: f"{n}.jpg", brand=lambda n: "Clay & Co" if n else "")
    guess = guess_catalog(make_catalog(rows))
    assert "brand" not in guess.columns
    assert guess.others == ["brand"]


# What cannot be guessed ----------------------------------------------------------------------


def test_no_description(tmp_path: Path) -> None:
    """The error names the columns and what to set."""
    table = tmp_path / "mugs.csv"
    table.write_text("file_name,price,sku\n1.jpg,1.50,M1\n2.jpg,2.50,M2\n")
    with pytest.raises(UserError) as caught:
        guess_catalog(table)
    found = "no column looks like descriptions (it has 'file_name', 'price', 'sku')."
    assert caught.value.problem == f"{table}: {found}"
    assert "data.columns.description" in caught.value.mend


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "holds no metadata file"),
        ({"a.csv": "a", "b.csv": "b"}, r"holds no metadata file.*a\.csv or .*b\.csv"),
        ({"metadata.csv": "file_name,description\n"}, "holds no row that can be read"),
        ({"metadata.csv": "file_name,description\na.jpg\n"}, "holds no row that can be read"),
        ({"metadata.csv": ""}, "is empty"),
    ],
    ids=["no table", "two tables", "no row", "only a broken row", "empty"],
)
def test_unusable_folder(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    """Each is one clear error."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=problem):
        guess_catalog(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    """A folder that does not exist, or a file that is no table."""
    (tmp_path / "mug.jpg").write_bytes(b"")
    for name in ("none", "mug.jpg"):
        with pytest.raises(UserError, match=f"{name} is no catalog here"):
            guess_catalog(tmp_path / name)


def test_broken_rows_are_passed_over(make_catalog: MakeCatalog) -> None:
    """The check is there to tell of them."""
    catalog = make_catalog()
    with (catalog / "metadata.csv").open("a") as file:
        file.write("one cell\n")
    guess = guess_catalog(catalog)
    assert len(guess.column_of("name").values) == 3


def test_first_rows_only(make_catalog: MakeCatalog) -> None:
    """A long table is not read to its end."""
    catalog = make_catalog([], "jsonl")
    rows = [json.dumps(row) for row in described(ROWS + 50, image=lambda n: f"{n}.jpg")]
    (catalog / "metadata.jsonl").write_text("\n".join(rows))
    assert len(guess_catalog(catalog).column_of("name").values) == ROWS


# Encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_other_encodings(make_catalog: MakeCatalog, tmp_path: Path, encoding: str) -> None:
    """The encoding is written into the config, and the texts come out right."""
    guess = guess_catalog(make_catalog(GERMAN_ROWS, encoding=encoding))
    assert guess.columns == GERMAN_COLUMNS
    assert guess.column_of("name").texts == [title for title, _, _ in GERMAN]
    config = written(guess, tmp_path)
    assert config.data.encoding == guess.encoding != "utf-8"


def test_encoding_is_that_of_the_whole_file(tmp_path: Path) -> None:
    """A table that is plain ASCII for long, and a character that two chunks share."""
    table = tmp_path / "a.csv"
    table.write_bytes(b"plain text\n" * 200_000 + "für Müsli und Brötchen".encode("cp1252"))
    assert find_encoding(table) == "cp1252"
    table.write_bytes(("x" + "ü" * 1_000_000).encode())
    assert find_encoding(table) == "utf-8"
    table.write_bytes(b"Caf\xe9")
    assert find_encoding(table) == "cp1252"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Tasse en céramique, idéale pour le thé à la française\nTrès légère\n"),
        ("cp1252", "Taza de cerámica para el desayuno de los niños, en color marrón\n"),
        ("cp1250", "Kubek ceramiczny do herbaty, ręcznie wykonany\nŁyżka, świetna do żurku\n"),
        ("cp1251", "Кружка керамическая для чая, ручная работа\nЛожка деревянная\n"),
        ("cp932", "陶器のマグカップ、手作りです。毎日のお茶に。\n木のスプーン\n"),
        ("gb18030", "手工制作的陶瓷杯子，适合每天喝茶。\n木勺子\n"),
    ],
)
@pytest.mark.parametrize("plain_lines", [0, 3000])
def test_encoding_of_few_lines(tmp_path: Path, encoding: str, text: str, plain_lines: int) -> None:
    """A few lines tell it, however much plain ASCII they stand in."""
    table = tmp_path / "a.csv"
    table.write_bytes(b"a plain row,of plain text\n" * plain_lines + text.encode(encoding))
    assert find_encoding(table) == encoding


# The config ----------------------------------------------------------------------------------


def test_all_but_data_and_prompt_is_kept(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """Values and comments of the other sections are those of the config that was named."""
    output = tmp_path / "starter.yaml"
    text = config_text(guess_catalog(make_catalog()), LIKE, output)
    assert text.partition("\nmodel:")[2] == LIKE.read_text().partition("\nmodel:")[2]
    ours, theirs = yaml.safe_load(text), yaml.safe_load(LIKE.read_text())
    assert list(ours) == list(theirs)
    assert ours["seed"] == theirs["seed"]
    assert ours["data"].get("max_tokens") == theirs["data"].get("max_tokens")
    assert "amazon" not in text.casefold()


def test_next_commands_stand_above(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """They can be copied, also where the file's name has a space."""
    text = config_text(guess_catalog(make_catalog()), LIKE, Path("my shop.yaml"))
    comments = [line for line in text.splitlines()[:4] if line.startswith("#   ")]
    assert comments == [
        "#   python run.py --pipeline check --config 'my shop.yaml'",
        "#   python run.py --pipeline finetune --config 'my shop.yaml'",
    ]


def test_prompt_names_the_fields(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """The template names what was guessed; the system message is a neutral one, or none."""
    guess = guess_catalog(make_catalog())
    prompt = written(guess, tmp_path).prompt
    assert prompt.fields == ["name", "category"]
    assert prompt.system == "You write product descriptions for our shop."
    like = tmp_path / "like.yaml"
    like.write_text(LIKE.read_text().replace("  system: ", "  # system: "))
    assert written(guess, tmp_path, like).prompt.system == ""


def test_nothing_but_pictures_and_descriptions(tmp_path: Path) -> None:
    """A prompt needs no field, and rows are held out by their pictures."""
    table = tmp_path / "mugs.csv"
    table.write_text("image,description\na.jpg,A mug made of clay\nb.jpg,A jug made of glass\n")
    config = written(guess_catalog(table), tmp_path)
    assert config.prompt.fields == []
    assert config.data.held_out.by is None


def test_demo_as_the_like_config(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """What it says of its own shop is left out; the rest of its evaluation stays."""
    config = written(guess_catalog(make_catalog()), tmp_path, DEMO)
    demo = load_config(DEMO)
    assert demo.evaluation.terms
    assert config.evaluation.terms == {}
    assert config.evaluation.copied_fields == ["name"]
    assert config.evaluation.max_rows == demo.evaluation.max_rows
    assert (config.model, config.training, config.hub) == (demo.model, demo.training, demo.hub)


@pytest.mark.parametrize(
    "written_as", ["copied_fields: [name, group]", "copied_fields:\n  # why\n  - name\n  - group"]
)
def test_copied_fields_that_are_not_there(
    make_catalog: MakeCatalog, tmp_path: Path, written_as: str
) -> None:
    """They are left out, so that the config loads."""
    like = tmp_path / "like.yaml"
    block = written_as.replace("\n", "\n  ")
    like.write_text(re.sub(r"copied_fields: \[name\]", block, DEMO.read_text()))
    config = written(guess_catalog(make_catalog()), tmp_path, like)
    assert config.evaluation.copied_fields == ["name"]
    assert config.evaluation.batch_size == load_config(DEMO).evaluation.batch_size


def test_like_config_in_other_ways_of_writing(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """Comments between sections stay with the section below; a flow section is refused."""
    values = yaml.safe_load(LIKE.read_text())
    model = {name: values[name] for name in ("model", "quantization", "lora", "training")}
    like = tmp_path / "like.yaml"
    data = f"data: {json.dumps(values['data'])}\n\n# about the model\n"
    prompt = f"prompt: {json.dumps(values['prompt'])}"
    like.write_text(f"{data}{yaml.safe_dump(model)}{prompt}")
    guess = guess_catalog(make_catalog())
    text = config_text(guess, like, Path("new.yaml"))
    assert "\n# about the model\nlora:" in text
    assert written(guess, tmp_path, like).data.source == str(guess.source)
    like.write_text(json.dumps(values))
    with pytest.raises(UserError, match="data must stand on lines of its own"):
        config_text(guess, like, Path("new.yaml"))


def uncommented(text: str) -> str:
    """A config whose suggested rules are declared."""
    before, line, after = text.partition("without the # every row is held to them:\n")
    rules, blank, rest = after.partition("\n\n")
    assert rules
    return before + line + re.sub(r"(?m)^( *)# ", r"\1", rules) + blank + rest


@pytest.mark.parametrize("pictures", ["a.jpg", "a.jpg|b.jpg"])
def test_suggested_rules_hold(make_catalog: MakeCatalog, tmp_path: Path, pictures: str) -> None:
    """Without their # they are read as rules, which the catalog's rows keep."""
    rows = [row | {"Bild": pictures} for row in GERMAN_ROWS]
    rows.append(rows[0] | {"Kategorie": ""})
    guess = guess_catalog(make_catalog(rows))
    config = tmp_path / "rules.yaml"
    plain = config_text(guess, LIKE, config)
    config.write_text(plain)
    assert load_config(config).data.contract.texts == {}
    config.write_text(uncommented(plain))
    data = load_config(config).data
    rules = data.contract.texts
    assert rules["category"].allowed == ["Haushalt", "Küche", "Möbel"]
    assert not rules["category"].required
    lengths = sorted(len(text) for _, _, text in GERMAN)
    assert rules["description"].min_length == lengths[0]
    assert rules["description"].max_length == lengths[-1]
    assert rules["description"].languages == ["de"]
    contract = Contract(data.contract, data.columns)
    for row in range(len(rows)):
        texts = {field: guess.column_of(field).texts[row] for field in data.texts}
        assert contract.text_problems(texts, "de") == []


def test_no_rule_without_a_ground(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """Many categories are not listed, and no language is named where there are two."""
    texts = [text for _, _, text in GERMAN]
    english = "A mug made of clay, which is for the breakfast table of a large family."
    rows = [
        {
            "image": f"{n}.jpg",
            "category": f"Kind {n % 31}",
            "description": english if n % 2 else texts[n % 4],
        }
        for n in range(93)
    ]
    text = config_text(guess_catalog(make_catalog(rows)), LIKE, tmp_path / "new.yaml")
    assert "category: category" in text
    assert "max_length" in text
    assert "allowed" not in text
    assert "languages" not in text


def test_other_columns_are_suggested(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """As comments, under names that a config may have, whatever the column is called."""
    names = ["Price (EUR)", "Größe", "row", "1st", "name!", "#", "two\nlines", "a: b", "Images"]
    rows = [row | dict.fromkeys(names, "x") for row in described(3, image=lambda n: f"{n}.jpg")]
    config = tmp_path / "new.yaml"
    text = config_text(guess_catalog(make_catalog(rows, "jsonl")), LIKE, config)
    block = text.partition("prompt.template:\n")[2].partition("  held_out")[0]
    lines = [line.removeprefix("    # ") for line in block.splitlines()]
    assert yaml.safe_load("\n".join(lines)) == {
        "price_eur": "Price (EUR)",
        "größe": "Größe",
        "row_2": "row",
        "column_1st": "1st",
        "name_2": "name!",
        "column_": "#",
        "two_lines": "two\nlines",
        "a_b": "a: b",
        "images_2": "Images",
    }
    config.write_text(text.replace(block, block.replace("    # ", "    ")))
    assert set(names) < set(load_config(config).data.columns.values())


def test_file_that_is_there_is_kept(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """It is written over only if told to."""
    guess, output = guess_catalog(make_catalog()), tmp_path / "configs" / "shop.yaml"
    write_config(guess, LIKE, output, force=False)
    output.write_text("mine")
    with pytest.raises(UserError, match=r"is already there.*--force"):
        write_config(guess, LIKE, output, force=False)
    assert output.read_text() == "mine"
    write_config(guess, LIKE, output, force=True)
    assert load_config(output).data.columns == guess.columns
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("key", ["repo_id: null", "runs_dir: runs"])
def test_like_config_that_cannot_be_adapted(
    make_catalog: MakeCatalog, tmp_path: Path, key: str
) -> None:
    """One that refers to its catalog from elsewhere is refused, and nothing is left behind."""
    like, output = tmp_path / "like.yaml", tmp_path / "new" / "shop.yaml"
    text = re.sub(r"(?m)^  source:", "  source: &shop", LIKE.read_text())
    like.write_text(text.replace(key, f"{key.split()[0]} *shop"))
    with pytest.raises(UserError, match=r"like\.yaml cannot be adapted to this catalog: "):
        write_config(guess_catalog(make_catalog()), like, output, force=False)
    assert not output.parent.exists()


def test_config_that_does_not_load_is_not_written(
    make_catalog: MakeCatalog, tmp_path: Path
) -> None:
    """The new config is loaded before it takes its place."""
    guess, output = guess_catalog(make_catalog()), tmp_path / "shop.yaml"
    output.write_text("mine")
    broken = replace(guess, columns=guess.columns | {"row": "Category"})
    with pytest.raises(UserError, match=r"the new config:.*'row' is vlmtune's own"):
        write_config(broken, LIKE, output, force=True)
    assert output.read_text() == "mine"
    assert not list(tmp_path.glob(".init-*"))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("shop", "shop.yaml"),
        ("shop/", "shop.yaml"),
        ("shop/metadata.csv", "shop.yaml"),
        ("shop/mugs.v2.csv", "mugs.v2.yaml"),
        ("shop.eu", "shop.eu.yaml"),
        (".", "here.yaml"),
    ],
)
def test_default_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str
) -> None:
    """Named after the catalog, in the current folder."""
    for folder in ("shop", "shop.eu"):
        (tmp_path / "here" / folder).mkdir(parents=True)
    for table in ("metadata.csv", "mugs.v2.csv"):
        (tmp_path / "here" / "shop" / table).write_text("a")
    monkeypatch.chdir(tmp_path / "here")
    assert default_output(Path(source)) == Path(name)


def test_what_is_printed(make_catalog: MakeCatalog, capsys: pytest.CaptureFixture[str]) -> None:
    """Field, column and an example of each; markup and control characters are shown plainly."""
    rows = described(4, file_name=lambda n: f"{n}.jpg", sku=lambda n: f"M{n}")
    rows[0]["title"] = "[red]\x1b[1mMug[/red]"
    rows[1]["description"] = ""
    print_guess(guess_catalog(make_catalog(rows)), Path("shop.yaml"))
    printed = capsys.readouterr().out
    assert "[red][1mMug[/red]" in printed
    assert "\x1b[1mMug" not in printed
    for words in ("file_name", "0.jpg", "3 of 4", "1 of 4 rows lack", "Not used: sku"):
        assert words in printed
    assert "python run.py --pipeline check --config shop.yaml" in printed
