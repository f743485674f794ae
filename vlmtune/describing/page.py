"""The described catalog as one web page: what a merchandiser should look at comes first."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.catalog.contact_sheet import data_uri
from vlmtune.catalog.ledger import Decision, RowLedger
from vlmtune.catalog.report.reasons import reason_meaning, reason_mend
from vlmtune.describing.results import OWN_COLUMNS, Descriptions
from vlmtune.evaluation.rules import CUT
from vlmtune.pages import page_environment

TEMPLATES = Path(__file__).resolve().parent / "templates"

# What keeps the page small enough to mail, at about 6 kB a row.
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 160, 70  # pixels; 1 to 95
QUARANTINED_SHOWN = 200

# Rule of the trade -> what it means when a description breaks it.
MEANINGS = {
    "empty": "nothing was written",
    CUT: "cut off before its end",
    "length": "too short or too long",
    "missing_name": "a name is missing",
    "banned_phrase": "a banned phrase",
    "html": "HTML in the text",
    "prompt_leak": "the instructions show through",
    "repetition": "it repeats itself",
    "language": "another language",
    "invented_number": "a number that is not in the product's data",
}


@dataclass(frozen=True)
class Flag:
    """A rule that a description breaks, in plain words, and what was found."""

    meaning: str
    problem: str


@dataclass(frozen=True)
class DescribedCard:
    """A described row with its picture as a data URI, or None."""

    title: str
    place: str
    fields: dict[str, str]
    description: str
    flags: list[Flag]
    picture: str | None


@dataclass(frozen=True)
class LeftOut:
    """A row that was not described, and why."""

    label: str
    place: str
    reasons: list[Flag]
    mends: list[str]


def render_descriptions(
    descriptions: Descriptions, catalog: Catalog, ledger: RowLedger, run: str, rows_shown: int
) -> str:
    """Write the descriptions as one self-contained HTML page: flagged rows, then the others.

    Args:
        run: name of the run that describes.
        rows_shown: at most so many rows; the page says how many it leaves out.

    Returns:
        HTML in which every text of the catalog and of the model is escaped.
    """
    flags = descriptions.table["flags"].to_pylist()
    order = sorted(range(len(flags)), key=lambda row: not flags[row])[:rows_shown]
    flagged = [row for row in order if flags[row]]
    record = descriptions.record
    return (
        page_environment(TEMPLATES)
        .get_template("descriptions.html.j2")
        .render(
            title=ledger.catalog_name,
            run=run,
            record=record,
            cut=record.flags.get(CUT, 0),
            flags={flag_meaning(flag): rows for flag, rows in record.flags.items()},
            flagged=_cards(flagged, descriptions, catalog),
            others=_cards(order[len(flagged) :], descriptions, catalog),
            left_out=list(islice(_left_out(ledger), QUARANTINED_SHOWN)),
        )
    )


def flag_meaning(flag: str) -> str:
    """A broken rule in plain words."""
    return MEANINGS.get(flag, flag.replace("_", " "))


def _cards(
    rows: Sequence[int], descriptions: Descriptions, catalog: Catalog
) -> list[DescribedCard]:
    import pyarrow

    records = descriptions.table.take(pyarrow.array(rows, pyarrow.int64())).to_pylist()
    return [_card(record, catalog.pictures(row)) for row, record in zip(rows, records, strict=True)]


def _card(record: dict[str, Any], pictures: list[bytes]) -> DescribedCard:
    fields = {
        column.removeprefix("fields."): text
        for column, text in record.items()
        if column not in OWN_COLUMNS and text
    }
    title = next(iter(fields.values()), record["place"])
    broken = zip(record["flags"], record["problems"], strict=True)
    uri = data_uri(pictures[0], THUMBNAIL_SIDE, THUMBNAIL_QUALITY) if pictures else None
    return DescribedCard(
        title=title,
        place=record["place"],
        fields=dict(islice(fields.items(), 1, None)),
        description=record["description"],
        flags=[Flag(flag_meaning(flag), problem) for flag, problem in broken],
        picture=uri,
    )


def _left_out(ledger: RowLedger) -> Any:
    """The quarantined rows."""
    columns = ledger.lines.select_columns(["label", "place", "decision", "reasons", ROW_ID])
    for line in columns:
        if line["decision"] == Decision.QUARANTINED:
            reasons = line["reasons"]
            yield LeftOut(
                label=line["label"],
                place=line["place"],
                reasons=[Flag(reason_meaning(each["code"]), each["message"]) for each in reasons],
                mends=list(dict.fromkeys(reason_mend(each["code"]) for each in reasons)),
            )
