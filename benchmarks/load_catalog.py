"""How fast a catalog is read, checked and formatted, and how much memory that takes.

    python benchmarks/load_catalog.py                      # 10,000 and 100,000 rows
    python benchmarks/load_catalog.py --rows 5000 20000

Each size runs in a process of its own: generated JPEGs and texts in a csv table, read as a run
reads them (every picture decoded and hashed, texts cleaned, tokens counted by the demo's
processor, duplicates grouped, split) and formatted as conversations. Then the same catalog with
10 % more rows is read with what the first reading knew, as a retrain does.

Memory is the process's peak: anonymous memory (what it holds) and resident memory (with the
pages of files that the kernel keeps mapped and may drop at any time).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
GROWTH = 0.1
WORDS = ["warm", "soft", "bright", "sturdy", "light", "deep", "round", "flat", "small", "calm"]


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.rows[0])))
        return
    print("| rows | seconds | rows/s | anonymous GiB | resident GiB | +10 %: seconds | decoded |")
    print("|---|---|---|---|---|---|---|")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as scratch:
            draw_catalog(Path(scratch), round(rows * (1 + GROWTH)))
            command = [sys.executable, __file__, "--measure", scratch, "--rows", str(rows)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {rows:,} | {found['seconds']:.0f} | {rows / found['seconds']:.0f} "
            f"| {found['anonymous']:.2f} | {found['resident']:.2f} "
            f"| {found['again_seconds']:.0f} | {found['again_decoded']:,} |",
            flush=True,
        )


def draw_catalog(folder: Path, rows: int) -> None:
    """Draw `rows` pictures of 160 to 320 pixels, no two alike, and write their table."""
    import csv

    import numpy
    from PIL import Image

    random = numpy.random.default_rng(0)
    (folder / "images").mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "Product Name", "Category", "description"])
        for number in range(rows):
            width, height = random.integers(160, 320, 2)
            coarse = random.integers(0, 256, (6, 6, 3), dtype="uint8")
            picture = Image.fromarray(coarse).resize((int(width), int(height)))
            picture.save(folder / "images" / f"{number}.jpg", quality=80)
            text = " ".join(random.choice(WORDS, 40))
            row = [f"images/{number}.jpg", f"Item {number}", f"Kind {number % 20}", f"A {text}."]
            table.writerow(row)


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Read the first rows, format them, then read all rows as a retrain does."""
    from vlmtune.environment import prepare_environment

    prepare_environment()
    from transformers import AutoProcessor

    from vlmtune.catalog.loading import PreviousCatalog, load_catalog
    from vlmtune.config.data import DataConfig, PromptConfig
    from vlmtune.prompting import format_examples
    from vlmtune.row_size import RowSizer

    columns = {
        "image": "file_name",
        "name": "Product Name",
        "category": "Category",
        "description": "description",
    }
    data = DataConfig(source=str(folder), columns=columns, held_out={"by": "name"}, max_rows=rows)
    prompt = PromptConfig(template="Describe {name} of {category}.")
    sizer = RowSizer(AutoProcessor.from_pretrained(ROOT / "demo" / "model"), prompt, None)
    memory = PeakMemory()
    work = folder / "work"
    start = time.monotonic()
    catalog, ledger = load_catalog(data, "1", sizer, work)
    examples = format_examples(catalog, ledger, data, prompt)
    seconds = time.monotonic() - start
    assert len(examples.train) + len(examples.held_out) == rows
    peak = memory.stop()
    grown = data.model_copy(update={"max_rows": None})
    start = time.monotonic()
    _, again = load_catalog(grown, "2", sizer, work, PreviousCatalog(catalog, ledger, "1"))
    return peak | {
        "seconds": seconds,
        "again_seconds": time.monotonic() - start,
        "again_decoded": again.pictures_decoded,
    }


class PeakMemory(threading.Thread):
    """Samples the memory of this process twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = {"anonymous": 0.0, "resident": 0.0}
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Note the peaks until `stop` is called."""
        names = {"RssAnon:": "anonymous", "VmRSS:": "resident"}
        while not self.ended.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, rest = line.partition("\t")
                if name in names:
                    gib = int(rest.split()[0]) / 2**20
                    self.peak[names[name]] = max(self.peak[names[name]], gib)

    def stop(self) -> dict[str, float]:
        """End sampling; returns the peaks in GiB."""
        self.ended.set()
        self.join()
        return self.peak


if __name__ == "__main__":
    main()
