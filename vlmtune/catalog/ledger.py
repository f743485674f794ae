"""The row ledger: one line for every row of the source, and what became of it.

kept + repaired + quarantined + duplicate = rows read, always.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtune.artifact import Artifact
from vlmtune.errors import UserError
from vlmtune.pages import counted

if TYPE_CHECKING:
    from datasets import Dataset, Features


EXAMPLES = 3  # quarantined rows, or ties, named in an error
LOWER_SHARING = "lower data.duplicates.max_sharing_products: what more products share ties no rows"
TIE_ADVICE = {
    "product": "name fields in data.held_out.by that tell more products apart",
    "image": LOWER_SHARING,
    "description": LOWER_SHARING,
}
FLAT_COLUMNS = (
    "line",
    "place",
    "row_id",
    "label",
    "decision",
    "codes",
    "reasons",
    "pictures",
    "sha256",
    "phash",
    "size",
    "resized",
    "picture_tokens",
    "tokens",
    "characters",
    "language",
    "group",
    "side",
    "carried",
    "shared_with_train",
    "copy_of",
)


class Decision(StrEnum):
    """What became of a row."""

    KEPT = "kept"
    REPAIRED = "repaired"
    QUARANTINED = "quarantined"
    DUPLICATE = "duplicate"  # an exact copy of a row that is kept or repaired

    @property
    def in_catalog(self) -> bool:
        """Whether such a row is trained on or held out."""
        return self in (Decision.KEPT, Decision.REPAIRED)


class Side(StrEnum):
    """Which side of the split a row is on."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class Reason:
    """Why a row was repaired, quarantined or not counted again.

    Attributes:
        code: kind of the reason in snake case, to count by (`missing_text`, `html_removed`).
        message: what was found and, where it is not plain, what was expected, for people.
        field: field of `data.columns` that it is about; empty for the row as a whole.
    """

    code: str
    message: str
    field: str = ""


@dataclass(frozen=True)
class PictureLine:
    """One picture of a row.

    Attributes:
        name: path or address as the source has it; empty for embedded bytes.
        sha256: of the encoded bytes, 64 hex digits; empty if there are none.
        phash: 64-bit perceptual hash, 16 hex digits; empty if the picture cannot be decoded.
        colour: RGB of a 4 x 4 thumbnail, row by row, 96 hex digits; empty likewise.
        width, height: in pixels, upright; 0 if unknown.
        resized_width, resized_height: after the model's processor has resized it.
        tokens: that the picture takes in the prompt.
    """

    name: str = ""
    sha256: str = ""
    phash: str = ""
    colour: str = ""
    width: int = 0
    height: int = 0
    resized_width: int = 0
    resized_height: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class LedgerLine:
    """One row of the source.

    Attributes:
        line: number of the row in the whole catalog, from 1.
        place: where the row stands, as `catalog/metadata.csv row 17`.
        row_id: 16 hex digits from pictures and fields, with `-2` and so on for equal rows.
        label: what to call the row in front of people: its name, shortened.
        decision: kept, repaired, quarantined or duplicate.
        reasons: of the decision, and of repairs.
        pictures: of the row, in order.
        text_hash: 16 hex digits from all texts, to see an edit; empty if quarantined early.
        language: ISO 639-1 code of the description; empty if unsure.
        characters: length of the description.
        tokens: of prompt, pictures and description together; 0 if unknown.
        group: key of the group that stays on one side; empty if quarantined or a duplicate.
        side: train or held_out; empty likewise.
        carried: whether the side comes from the previous ledger.
        shared_with_train: what a held-out row has in common with a training row all the same:
            `description`, `image` or both, separated by a space; else empty.
        copy_of: id of the row that a duplicate is an exact copy of; else empty.
    """

    line: int
    place: str
    row_id: str
    label: str
    decision: Decision
    reasons: list[Reason] = field(default_factory=list)
    pictures: list[PictureLine] = field(default_factory=list)
    text_hash: str = ""
    language: str = ""
    characters: int = 0
    tokens: int = 0
    group: str = ""
    side: str = ""
    carried: bool = False
    shared_with_train: str = ""
    copy_of: str = ""

    def record(self) -> dict[str, Any]:
        """As a row of the ledger's table."""
        return asdict(self)


@dataclass(frozen=True)
class SharedValue:
    """What several rows have in common.

    Attributes:
        kind: `product` (a value of `held_out.by`), `image` or `description`. An image counts with
            all that are similar to it, a description likewise if `min_description_similarity` is
            set.
        label: the value, the name of the image's file or the description, shortened.
        row_id: of the first row that has it.
        rows, products, held_out: how many rows, products and held-out rows have it.
        ties: whether it ties its rows to one side of the split.
    """

    kind: str
    label: str
    row_id: str
    rows: int
    products: int
    held_out: int
    ties: bool

    def __str__(self) -> str:
        size = f"{counted(self.rows, 'row')}, {counted(self.products, 'product')}"
        return f"the {self.kind} {self.label!r} ({size})"


def ledger_features() -> "Features":
    """The columns of the ledger's table."""
    from datasets import Features, List, Value

    text, number = Value("string"), Value("int32")
    reason = {"code": text, "message": text, "field": text}
    names = ("name", "sha256", "phash", "colour")
    sizes = ("width", "height", "resized_width", "resized_height", "tokens")
    picture = dict.fromkeys(names, text) | dict.fromkeys(sizes, number)
    return Features(
        {
            "line": number,
            "place": text,
            "row_id": text,
            "label": text,
            "decision": text,
            "reasons": List(reason),
            "pictures": List(picture),
            "text_hash": text,
            "language": text,
            "characters": number,
            "tokens": number,
            "group": text,
            "side": text,
            "carried": Value("bool"),
            "shared_with_train": text,
            "copy_of": text,
        }
    )


def flat_line(line: dict[str, Any]) -> dict[str, Any]:
    """A ledger line without nested values, with the columns of `FLAT_COLUMNS`."""
    pictures = line["pictures"]
    whole = {name: line[name] for name in FLAT_COLUMNS if name in line}
    return whole | {
        "reasons": "; ".join(spreadsheet_safe(reason["message"]) for reason in line["reasons"]),
        "codes": " ".join(dict.fromkeys(reason["code"] for reason in line["reasons"])),
        "place": spreadsheet_safe(line["place"]),
        "label": spreadsheet_safe(line["label"]),
        "group": spreadsheet_safe(line["group"]),
        "pictures": " ".join(spreadsheet_safe(picture["name"]) for picture in pictures),
        "sha256": " ".join(picture["sha256"] for picture in pictures),
        "phash": " ".join(picture["phash"] for picture in pictures),
        "size": " ".join(f"{each['width']}x{each['height']}" for each in pictures),
        "resized": " ".join(f"{p['resized_width']}x{p['resized_height']}" for p in pictures),
        "picture_tokens": sum(picture["tokens"] for picture in pictures),
    }


def spreadsheet_safe(text: str) -> str:
    """A text that no spreadsheet takes for a formula, and a file name for a printable one."""
    printable = text.encode("utf-8", "replace").decode()
    return f"'{printable}" if printable.startswith(("=", "+", "-", "@", "\t", "\r")) else printable


@dataclass(frozen=True)
class RowLedger(Artifact):
    """What became of every row of a catalog.

    Attributes:
        lines: one row a line of the source, with the columns of `ledger_features`.
        quarantine: folder with `metadata.jsonl` and pictures of the quarantined rows, itself a
            catalog that can be mended and fed back.
        catalog_name: what the catalog is called; runs on catalogs of one name go together.
        catalog_version: of the catalog that was read.
        pictures_decoded: pictures decoded in this reading.
        pictures_known: pictures whose facts were known from an earlier reading.
        previous: id of the ledger that the split was carried on from; None for a first one.
        inputs: fingerprint of all that the ledger was made from, but for `previous`.
        shared: what most rows have in common, first what ties them, then what too many products
            share for that.
        scratch: keeps the temporary folder alive that the table is mapped from.
    """

    lines: "Dataset"
    quarantine: Path
    catalog_name: str = ""
    catalog_version: str = ""
    pictures_decoded: int = 0
    pictures_known: int = 0
    previous: str | None = None
    inputs: str = ""
    shared: list[SharedValue] = field(default_factory=list)
    scratch: Any = field(default=None, repr=False, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """`rows_read`, and of these one count a decision, which add up; `train`, `held_out`; and
        of the held-out rows those that share a description, or an image, with a training row."""
        decisions = Counter(self.lines["decision"])
        sides = Counter(self.lines["side"])
        counts = {"rows_read": len(self.lines)}
        counts |= {decision.value: decisions[decision.value] for decision in Decision}
        counts |= {side.value: sides[side.value] for side in Side}
        is_old = "shared_with_train" not in self.lines.column_names
        shared = [] if is_old else [each.split() for each in self.lines["shared_with_train"]]
        return counts | {
            f"held_out_sharing_{kind}": sum(kind in kinds for kinds in shared)
            for kind in ("description", "image")
        }

    @property
    def reason_counts(self) -> dict[str, int]:
        """Reason code -> rows that have it, most frequent first."""
        codes = Counter(
            code
            for reasons in self.lines["reasons"]
            for code in {reason["code"] for reason in reasons}
        )
        return dict(sorted(codes.items(), key=lambda entry: (-entry[1], entry[0])))

    def write_csv(self, path: Path) -> Path:
        """Write all lines as a table that a spreadsheet opens; returns the path."""
        with path.open("w", encoding="utf-8-sig", newline="") as file:  # the mark is for Excel
            table = csv.DictWriter(file, FLAT_COLUMNS)
            table.writeheader()
            table.writerows(flat_line(line) for line in self.lines)
        return path

    def require_acceptable(self, max_quarantine: float) -> None:
        """Refuse a catalog of which too much is in quarantine.

        Raises:
            UserError: the share of quarantined rows is above `max_quarantine`, or no row is left.
        """
        counts = self.counts
        share = counts["quarantined"] / counts["rows_read"]
        if share <= max_quarantine and share < 1:
            return
        reasons = ", ".join(f"{code} {rows}" for code, rows in self._quarantine_codes().items())
        raise UserError(
            f"{counts['quarantined']} of {counts['rows_read']} rows are quarantined "
            f"({share:.1%}, data.max_quarantine allows {max_quarantine:.1%}): {reasons}.\n"
            + "".join(f"  {example}\n" for example in islice(self._quarantined(), EXAMPLES)),
            "Mend the rows: the run's ledger.html and quarantine/ show them. "
            + ("Or raise data.max_quarantine to go on without them." if share < 1 else ""),
        )

    def require_both_sides(self, fraction: float) -> None:
        """Refuse a split that leaves nothing to train on, or nothing to measure on.

        Raises:
            UserError: one of the sides is empty.
        """
        counts = self.counts
        for side, verb in ((Side.TRAIN, "Lower"), (Side.HELD_OUT, "Raise")):
            if not counts[side]:
                groups = Counter(group for group in self.lines["group"] if group)
                ties = [value for value in self.shared if value.ties][:EXAMPLES]
                tied = ", ".join(map(str, ties))
                largest = f" The largest has {max(groups.values())} rows, tied by {tied}."
                advice = [f"{verb} data.held_out.fraction"] if len(groups) > 1 else []
                advice += dict.fromkeys(TIE_ADVICE[value.kind] for value in ties)
                advice += ["set data.previous to null to split anew"] if self.previous else []
                advice += ["add rows"]
                raise UserError(
                    f"the {side.value} side of the split would be empty: the catalog has "
                    f"{len(groups)} groups of rows, and data.held_out.fraction is {fraction}."
                    + (largest if ties else ""),
                    f"{', or '.join(advice)}.",
                )

    def _quarantined(self) -> Iterator[str]:
        """Where each quarantined row stands, and the first thing that is wrong with it."""
        for line in self.lines.select_columns(["place", "decision", "reasons"]):
            if line["decision"] == Decision.QUARANTINED:
                yield f"{line['place']}: {line['reasons'][0]['message']}"

    def _quarantine_codes(self) -> dict[str, int]:
        lines = self.lines.select_columns(["decision", "reasons"])
        codes: Counter[str] = Counter()
        for decision, reasons in zip(lines["decision"], lines["reasons"], strict=True):
            if decision == Decision.QUARANTINED:
                codes.update({reason["code"] for reason in reasons})
        return dict(codes.most_common())
