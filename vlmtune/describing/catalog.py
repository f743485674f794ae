"""Describes a catalog: every row that can be, once, whatever happens on the way."""

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.ledger import RowLedger
from vlmtune.config.data import PromptConfig
from vlmtune.config.describing import DescribeConfig
from vlmtune.config.evaluation import RulesConfig
from vlmtune.config.model import ModelConfig
from vlmtune.describing.journal import KEY, Journal, fingerprint
from vlmtune.describing.results import (
    DescribingRecord,
    Descriptions,
    field_column,
    table_schema,
)
from vlmtune.evaluation.generation import WrittenText, cut_in_words
from vlmtune.evaluation.rules import CUT, Answer, broken_rules
from vlmtune.models.describer import Describer
from vlmtune.progress import rows_progress
from vlmtune.prompting import fields_of, format_prompts, with_pictures

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Table

logger = logging.getLogger(__name__)

# From rows with `prompt` and `images` to their texts, a batch at a time.
Writer = Callable[["Dataset"], Iterator[list[WrittenText]]]


@dataclass(frozen=True)
class DescribingPlan:
    """How to describe.

    Attributes:
        prompt, generation, rules: of the run that trained the model; `generation` are options of
            transformers.GenerationConfig.
        model: how a model is loaded.
        settings: engine and batch size.
        folder: of unfinished and finished journals, one a fingerprint.
        code: version of the code that writes texts; another one writes them anew.
    """

    prompt: PromptConfig
    generation: dict[str, Any]
    rules: RulesConfig
    model: ModelConfig
    settings: DescribeConfig
    folder: Path
    code: str = ""


def describe_catalog(
    catalog: Catalog, ledger: RowLedger, describer: Describer, plan: DescribingPlan
) -> Descriptions:
    """Write a description for each row of a catalog; rows written before are not written again.

    Raises:
        UserError: no row can be described, or the engine is not there.
    """
    with tempfile.TemporaryDirectory(prefix="vlmtune-prompts-") as scratch:
        rows = format_prompts(catalog, ledger, plan.prompt, Path(scratch))
        keys = [_row_key(row) for row in rows]
        with Journal(plan.folder / _fingerprint(catalog, describer, plan)) as journal:
            missing = [row for row, key in enumerate(keys) if key not in journal.finished]
            known, seconds = len(keys) - len(missing), 0.0
            if known:
                logger.info("%d of %d rows were described before", known, len(keys))
            if missing:
                new = with_pictures(rows.select(missing), catalog)
                seconds = _write(new, [keys[row] for row in missing], describer, plan, journal)
            finished = [journal.finished[key] for key in keys]
        prompts = [[message["content"] for message in prompt] for prompt in rows["prompt"]]
    table = _table(catalog, ledger, prompts, finished, describer.name, plan.rules)
    record = DescribingRecord(
        model=describer.name,
        engine=plan.settings.engine,
        rows=len(keys),
        new_rows=len(missing),
        flagged_rows=sum(bool(flags) for flags in table["flags"].to_pylist()),
        flags=_count(table["flags"].to_pylist()),
        quarantined_rows=ledger.counts["quarantined"],
        new_tokens=sum(finished[row]["tokens"] for row in missing),
        seconds=round(seconds, 2),
    )
    if missing:
        logger.info("%d rows described, %.1f rows/s", len(missing), record.rows_per_second)
    if cut := record.flags.get(CUT):
        logger.warning("%s", cut_in_words(cut, record.rows, plan.generation))
    return Descriptions(table, record)


def _row_key(row: dict[str, Any]) -> str:
    """A row's id stands for its pictures and fields; the prompt is what they are put into."""
    return fingerprint({"row": row[ROW_ID], "prompt": row["prompt"]})


def _fingerprint(catalog: Catalog, describer: Describer, plan: DescribingPlan) -> str:
    return fingerprint(
        {
            "model": describer.identity,
            "pixels": (plan.model.min_pixels, plan.model.max_pixels),
            "background": catalog.background,
            "generation": plan.generation,
            "engine": plan.settings.engine,
            "code": plan.code,
        }
    )


def _write(
    rows: "Dataset", keys: list[str], describer: Describer, plan: DescribingPlan, journal: Journal
) -> float:
    """Write the missing rows into the journal, each batch as soon as it is done; returns the
    seconds that it took once the model was there."""
    with (
        open_writer(describer, plan) as write,
        rows_progress(f"Describing with the {describer.kind}", len(rows)) as advance,
    ):
        start = time.monotonic()
        for batch in write(rows):
            journal.add(
                [
                    {
                        KEY: keys[written.row],
                        "text": written.text,
                        "tokens": written.tokens,
                        "cut": written.cut,
                        "seconds": round(written.seconds, 4),
                    }
                    for written in batch
                ]
            )
            advance(len(batch))
        return time.monotonic() - start


@contextmanager
def open_writer(describer: Describer, plan: DescribingPlan) -> Iterator[Writer]:
    """The loaded model in the engine that the config names.

    Raises:
        UserError: the engine is not installed, or does not take such a model.
    """
    options, size = plan.generation, plan.settings.batch_size
    if plan.settings.engine == "vllm":
        from vlmtune.describing.vllm_engine import VllmWriter

        yield VllmWriter(describer, plan.model, options, size)
        return
    from vlmtune.evaluation.generation import write_texts
    from vlmtune.models.describer import load_describer

    model, processor, _ = load_describer(describer, plan.model)
    yield lambda rows: write_texts(model, processor, rows, options, size)


def _table(
    catalog: Catalog,
    ledger: RowLedger,
    prompts: list[list[str]],
    finished: list[dict[str, Any]],
    model: str,
    rules: RulesConfig,
) -> "Table":
    import pyarrow

    places = dict(zip(ledger.lines[ROW_ID], ledger.lines["place"], strict=True))
    records = []
    for row, prompt, written in zip(catalog.texts(), prompts, finished, strict=True):
        fields = fields_of(row)
        answer = Answer(
            text=written["text"], reference="", fields=fields, prompt=prompt, cut=written["cut"]
        )
        broken = broken_rules(answer, rules)
        records.append(
            {
                "row_id": row[ROW_ID],
                "place": places[row[ROW_ID]],
                **{field_column(field): text for field, text in fields.items()},
                "description": written["text"],
                "flags": list(broken),
                "problems": list(broken.values()),
                "model": model,
                "seconds": written["seconds"],
            }
        )
    schema = table_schema(list(fields_of(catalog.texts().features)))
    return pyarrow.Table.from_pylist(records, schema=schema)


def _count(flags: list[list[str]]) -> dict[str, int]:
    return dict(Counter(flag for row in flags for flag in row).most_common())
