"""A small catalog without descriptions, and the demo's model to describe it with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.catalog.loading import load_catalog
from vlmtune.config.data import PromptConfig
from vlmtune.config.describing import DescribeConfig
from vlmtune.config.evaluation import RulesConfig
from vlmtune.config.model import ModelConfig
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.describer import Describer
from vlmtune.models.merging import MergeRecord, MergeResult

MODEL = Path(__file__).resolve().parents[3] / "demo" / "model"
PROMPT = PromptConfig(template="Describe this product for our shop.\n##PRODUCT NAME##: {name}")


@dataclass(frozen=True)
class Shop:
    """A catalog that was read, and all that is needed to describe it."""

    catalog: Catalog
    ledger: RowLedger
    describer: Describer
    plan: Any

    def describe(self, **changes: Any) -> Any:
        """Describe it, with another plan in some ways."""
        from vlmtune.describing.catalog import describe_catalog

        plan = replace(self.plan, **changes)
        return describe_catalog(self.catalog, self.ledger, self.describer, plan)


@pytest.fixture
def shop_folder(
    make_catalog: Callable[..., Path], make_rows: Callable[[int], list[dict[str, Any]]]
) -> Path:
    """Nine products without descriptions, one of them without a picture."""
    rows = make_rows(9)
    for row in rows:
        del row["description"]
    rows[4]["file_name"] = "images"
    return make_catalog(rows, name="shop")


@pytest.fixture
def shop(shop_folder: Path, make_data: Callable[..., Any], tmp_path: Path) -> Shop:
    """The catalog and the demo's pretrained model, as if it were merged."""
    data = make_data(shop_folder).without_descriptions()
    return Shop(*load_catalog(data, "v"), merged_describer(), describing_plan(tmp_path / "work"))


def merged_describer() -> Describer:
    """The demo's model as a merged one."""
    base = BaseModelRef(id=str(MODEL), content_hash="0" * 64)
    record = MergeRecord(status="merged", base=base, adapter_hash="a" * 64)
    return Describer("finetune-1", MergeResult(record=record, folder=MODEL))


def describing_plan(folder: Path, batch_size: int = 3, max_new_tokens: int = 8) -> Any:
    """Short descriptions in small batches."""
    from vlmtune.describing.catalog import DescribingPlan

    return DescribingPlan(
        prompt=PROMPT,
        generation={"max_new_tokens": max_new_tokens, "do_sample": False},
        rules=RulesConfig(),
        model=ModelConfig(id=str(MODEL), device="cpu"),
        settings=DescribeConfig(batch_size=batch_size),
        folder=folder,
    )
