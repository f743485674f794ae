"""The web page of the ledger: what became of every row of the source."""

import heapq
from pathlib import Path

from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.catalog_reader import read_columns
from vlmtune.catalog.ledger import Decision, RowLedger
from vlmtune.catalog.report.row_cards import RowCards
from vlmtune.pages import page_environment

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render_ledger_page(
    catalog: Catalog, ledger: RowLedger, title: str, rows_shown: int = 500
) -> str:
    """Write the ledger as one self-contained HTML page: quarantined rows, then
    duplicates, repaired and kept ones.

    Args:
        catalog: the rows that can be trained on, for their pictures.
        ledger: what became of every row of the source.
        title: the page's heading.
        rows_shown: at most so many rows; the page says how many it leaves out.
    """
    shown = (Decision.QUARANTINED, Decision.DUPLICATE, Decision.REPAIRED, Decision.KEPT)
    ranks = {decision: rank for rank, decision in enumerate(shown)}
    decisions = read_columns(ledger.lines, "decision", "line")
    order = [(ranks[Decision(decision)], line) for decision, line in decisions]
    positions = heapq.nsmallest(rows_shown, range(len(order)), key=order.__getitem__)
    page = page_environment(TEMPLATES).get_template("ledger.html.j2")
    cards = RowCards(catalog, ledger).cards(positions)
    return page.render(title=title, counts=ledger.counts, rows=cards)
