"""Each row is described once, with the right text and the right flags, killed or not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.describing.conftest import Shop
from vlmtune.catalog.loading import load_catalog
from vlmtune.config.data import PromptConfig
from vlmtune.config.evaluation import RulesConfig
from vlmtune.evaluation.decoding import DecodedText, Decoder


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows went through the model, batch by batch."""
    answer, batches = Decoder.answer, []

    def counted(self: Decoder, pieces: Any, together: int, longest: int) -> Any:
        batches.append(together)
        return answer(self, pieces, together, longest)

    monkeypatch.setattr(Decoder, "answer", counted)
    return batches


def test_each_row_gets_its_own_text(shop: Shop) -> None:
    """In the catalog's order, with where it stands in the source."""
    from vlmtune.evaluation.generation import describe_batch
    from vlmtune.models.describer import load_describer
    from vlmtune.prompting import build_prompt

    found = shop.describe()
    rows = found.table.to_pylist()
    assert [row["name"] for row in rows] == [f"Mug {n}" for n in (1, 2, 3, 4, 6, 7, 8, 9)]
    assert [row["place"] for row in rows][3:5] == [f"shop/metadata.csv row {n}" for n in (4, 6)]
    model, processor, name = load_describer(shop.describer, shop.plan.model)
    assert {row["model"] for row in rows} == {name}
    assert name == "merged model of finetune-1 (adapter aaaaaaaaaaaa)"
    fifth = {
        "prompt": [build_prompt(shop.plan.prompt, {"name": "Mug 6"})],
        "images": [shop.catalog.open_pictures(4)],
    }
    assert describe_batch(model, processor, fifth, shop.plan.generation) == [rows[4]["description"]]
    record = found.record
    assert (record.rows, record.new_rows, record.quarantined_rows) == (8, 8, 1)
    assert 0 < record.new_tokens <= 8 * 8 and record.rows_per_second > 0


def test_a_second_time_nothing_is_written(
    shop: Shop, generated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is not even loaded."""
    first = shop.describe()
    assert generated == [3, 3, 2]
    monkeypatch.setattr("vlmtune.models.describer.load_describer", None)
    again = shop.describe()
    assert again.table.equals(first.table)
    assert (again.record.rows, again.record.new_rows, again.record.seconds) == (8, 0, 0.0)


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"generation": {"max_new_tokens": 4, "do_sample": False}}, 8),
        ({"prompt": PromptConfig(template="What is {name}?")}, 8),
        ({"code": "another"}, 8),
        ({"rules": RulesConfig(max_length=3)}, 0),
    ],
    ids=["generation", "prompt", "code", "rules"],
)
def test_what_is_written_anew(shop: Shop, changes: dict[str, Any], new: int) -> None:
    """All that decides the text does; rules only judge it."""
    shop.describe()
    assert shop.describe(**changes).record.new_rows == new


def test_another_model_writes_anew(shop: Shop) -> None:
    """Its adapter has another hash."""
    shop.describe()
    merged = shop.describer.merged
    record = merged.record.model_copy(update={"adapter_hash": "b" * 64})
    other = replace(shop, describer=replace(shop.describer, merged=replace(merged, record=record)))
    assert other.describe().record.new_rows == 8


def test_only_new_and_changed_rows_of_a_grown_catalog_are_described(
    shop: Shop,
    make_catalog: Callable[..., Path],
    make_rows: Callable[[int], list[dict[str, Any]]],
    make_data: Callable[..., Any],
) -> None:
    """The others keep their texts."""
    first = {row["row_id"]: row["description"] for row in shop.describe().table.to_pylist()}
    rows = make_rows(11)  # the fifth has its picture now, two more came, and one changes its name
    rows[0]["Product Name"] = "Cup 1"
    data = make_data(make_catalog(rows, name="grown")).without_descriptions()
    grown = replace(shop, **dict(zip(("catalog", "ledger"), load_catalog(data, "v"), strict=True)))
    found = grown.describe()
    assert (found.record.rows, found.record.new_rows) == (11, 4)
    now = {row["row_id"]: row["description"] for row in found.table.to_pylist()}
    assert len(first.keys() & now.keys()) == 7
    assert all(now[row_id] == first[row_id] for row_id in first.keys() & now.keys())


def test_rules_flag_rows_without_a_reference(shop: Shop) -> None:
    """Numbers are known from prompt and fields; the language is compared with nothing."""
    texts = iter(
        [
            "Mug 1 holds 3.5 litres.",
            "Mug 2, a plain mug with a handle, made of glazed stoneware for every day.",
            "",
            "Buy Mug 4 <b>now</b>!",
            "Mug 6 Mug 6 Mug 6 Mug 6 Mug 6",
            "##PRODUCT NAME##: Mug 7",
            "Eine schlichte Tasse mit Henkel, aus glasiertem Steinzeug für alle Tage: Mug 8.",
            "A cup.",
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "answer", lambda *_: [DecodedText(next(texts), 1, False)])
        settings = shop.plan.settings.model_copy(update={"batch_size": 1})
        found = shop.describe(settings=settings, rules=RulesConfig(named_fields=["name"]))
    flags = {row["name"]: row["flags"] for row in found.table.to_pylist()}
    assert flags == {
        "Mug 1": ["invented_number"],
        "Mug 2": [],
        "Mug 3": ["empty", "missing_name"],
        "Mug 4": ["html"],
        "Mug 6": ["repetition"],
        "Mug 7": ["prompt_leak"],
        "Mug 8": [],
        "Mug 9": ["missing_name"],
    }
    assert found.record.flagged_rows == 6
    assert found.record.flags["missing_name"] == 2
    problems = found.table.to_pylist()[0]["problems"]
    assert problems == ["the number 3.5 is neither in the prompt nor in the catalog's text"]


def test_a_field_may_be_called_like_a_column_of_ours(
    shop: Shop, shop_folder: Path, make_data: Callable[..., Any]
) -> None:
    """It keeps its text, in a column of another name."""
    columns = {"image": "file_name", "name": "Product Name", "model": "Category"}
    data = make_data(shop_folder, columns=columns, described=False).without_descriptions()
    renamed = replace(
        shop, **dict(zip(("catalog", "ledger"), load_catalog(data, "v"), strict=True))
    )
    row = renamed.describe().table.to_pylist()[0]
    assert row["fields.model"] == "Kitchen"
    assert row["model"].startswith("merged model")


def test_a_killed_run_goes_on_where_it_was(
    shop: Shop, shop_folder: Path, root: Path, generated: list[int], tmp_path: Path
) -> None:
    """`kill -9` in the middle: no finished row is written again, and all texts are as they would
    have been."""
    script = tmp_path / "describe.py"
    script.write_text(SLOWLY)
    process = subprocess.Popen(
        [sys.executable, str(script), str(shop_folder), str(tmp_path / "killed")],
        env=os.environ | {"PYTHONPATH": str(root)},
        start_new_session=True,
    )
    finished = _wait_for_rows(process, tmp_path / "killed", rows=2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = finished.read_bytes()
    done = before.count(b"\n")
    assert 2 <= done < 8
    with finished.open("ab") as file:
        file.write(b'{"key": "torn", "te')
    resumed = shop.describe(folder=tmp_path / "killed", settings=one_at_a_time(shop))
    assert resumed.record.new_rows == 8 - done == sum(generated)
    assert finished.read_bytes().startswith(before)
    assert finished.read_bytes().count(b"\n") == 8
    straight = shop.describe(folder=tmp_path / "straight", settings=one_at_a_time(shop))
    texts = [found.table["description"].to_pylist() for found in (resumed, straight)]
    assert texts[0] == texts[1]


def one_at_a_time(shop: Shop) -> Any:
    """Batches of one row, so that there is something to kill in between."""
    return shop.plan.settings.model_copy(update={"batch_size": 1})


SLOWLY = """
import sys, time
from pathlib import Path

from tests.unit.describing.conftest import describing_plan, merged_describer
from tests.conftest import COLUMNS
from vlmtune.catalog.loading import load_catalog
from vlmtune.config.data import DataConfig
from vlmtune.describing.catalog import describe_catalog
from vlmtune.describing.journal import Journal

add = Journal.add
Journal.add = lambda *given: (add(*given), time.sleep(0.5))
data = DataConfig(source=sys.argv[1], columns=COLUMNS).without_descriptions()
plan = describing_plan(Path(sys.argv[2]), batch_size=1)
describe_catalog(*load_catalog(data, "v"), merged_describer(), plan)
"""


def _wait_for_rows(process: subprocess.Popen[bytes], folder: Path, rows: int) -> Path:
    """The journal, as soon as it has so many rows."""
    deadline = time.monotonic() + 120
    while True:
        for path in folder.glob("*/rows.jsonl"):
            if path.read_bytes().count(b"\n") >= rows:
                return path
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
