"""Speed of describing a catalog with Qwen2-VL-7B's exact shapes, against one row at a time.

    python benchmarks/describe_catalog.py            # on one GPU
    python benchmarks/describe_catalog.py --tiny     # a smoke test on a CPU
    python benchmarks/describe_catalog.py --only merged

Rows are JPEG files of 224 to 644 pixels a side, read by the product's own catalog code; weights
are random (speed does not depend on them). `describe-merged` is what `--pipeline describe` does
with a merged model in bf16, `evaluate-adapter` what the evaluation does with NF4 weights and the
adapter switched on; `one-by-one-...` is the published recipe's loop on the same weights: a picture
file is opened, encoded and described, then the next one. Every row gets the same number of new
tokens. Figures are medians over the rounds; the first one, which warms up, is told beside them.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from seven_b import (  # noqa: E402 - the path is set first
    LORA,
    SIDES,
    build_model,
    build_unquantised,
    configuration,
    make_catalog,
    memory,
)

Batches = Iterator[int]  # rows in each batch, once it is described


def main() -> None:
    """Measure each variant and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_048, help="described with the merged model")
    parser.add_argument("--held-out", type=int, default=200, help="described with the adapter")
    parser.add_argument("--single-rows", type=int, default=2, help="described one by one")
    parser.add_argument("--new-tokens", type=int, default=256, help="of every row")
    parser.add_argument(
        "--sides", type=int, nargs=2, default=SIDES, help="pixels, shortest and longest"
    )
    parser.add_argument("--batch-size", default="auto", help="rows at a time, or auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="show what the time goes into")
    parser.add_argument("--tiny", action="store_true", help="the demo's model, on any machine")
    kinds = ["merged", "adapter"]
    parser.add_argument("--only", nargs="+", default=kinds, choices=kinds, help="kinds of weights")
    parser.add_argument("--results", type=Path, default=Path("describe_catalog.jsonl"))
    options = parser.parse_args()
    if options.tiny:
        options.rows, options.held_out = min(options.rows, 48), min(options.held_out, 24)
        options.new_tokens = min(options.new_tokens, 16)
    logging.basicConfig(level=logging.INFO, format="  %(message)s")
    with tempfile.TemporaryDirectory() as folder:
        make_catalog(Path(folder), options.rows, options.sides)
        results = [measured for kind in options.only for measured in run(kind, folder, options)]
    with options.results.open("a") as file:
        file.writelines(json.dumps(result) + "\n" for result in results)
    print_table(results)


def run(kind: str, folder: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The variants with one kind of weights: in batches, then one by one."""
    from vlmtune.models.processor import load_processor
    from vlmtune.models.quantized import release_unused_memory

    config = configuration(Path(folder), options.tiny)
    processor = load_processor(config.model.id, None, config.model)
    rows = read_rows(config, processor, Path(folder) / f"prompts-{kind}")
    release_unused_memory()
    model = make_model(kind, processor, options.tiny)
    name, count = {
        "merged": ("describe-merged", len(rows)),
        "adapter": ("evaluate-adapter", min(options.held_out, len(rows))),
    }[kind]
    fixed = {"max_new_tokens": options.new_tokens, "do_sample": False}
    some = rows.select(range(count))
    yield measure(name, options, lambda: in_batches(model, processor, some, fixed, options))
    few = rows.select(range(min(options.single_rows, len(rows))))
    files = [Path(folder) / f"{row}.jpg" for row in few.with_format(None)["row"]]
    yield measure(
        f"one-by-one-{kind}",
        options,
        lambda: one_by_one(model, processor, few.with_format(None), files, fixed),
    )


def make_model(kind: str, processor: Any, tiny: bool) -> Any:
    """A merged model in bf16, or an NF4 base with its adapter switched on; no token ends a text,
    so that all rows get as many."""
    model = (build_unquantised if kind == "merged" else build_model)(processor, tiny)
    model.generation_config.eos_token_id = None
    if kind == "merged":
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(**LORA))


def read_rows(config: Any, processor: Any, folder: Path) -> Any:
    """The prompts and pictures of a catalog without descriptions, as `--pipeline describe` has
    them."""
    from vlmtune.catalog.loading import load_catalog
    from vlmtune.catalog.source import catalog_version
    from vlmtune.prompting import format_prompts, with_pictures
    from vlmtune.row_size import RowSizer

    data = config.data.without_descriptions()
    sizer = RowSizer(processor, config.prompt, None)
    catalog, ledger = load_catalog(data, catalog_version(data), sizer=sizer)
    folder.mkdir()
    return with_pictures(format_prompts(catalog, ledger, config.prompt, folder), catalog)


def in_batches(
    model: Any, processor: Any, rows: Any, fixed: dict[str, Any], options: argparse.Namespace
) -> Batches:
    """The product's own way."""
    from vlmtune.evaluation.generation import write_texts

    size = options.batch_size if options.batch_size == "auto" else int(options.batch_size)
    for batch in write_texts(model, processor, rows, fixed, size):
        yield len(batch)


def one_by_one(
    model: Any, processor: Any, rows: Any, files: list[Path], fixed: dict[str, Any]
) -> Batches:
    """The published recipe's loop."""
    from PIL import Image

    from vlmtune.evaluation.generation import describe_batch

    for row, file in zip(rows, files, strict=True):
        picture = Image.open(file).convert("RGB")
        describe_batch(model, processor, {"prompt": [row["prompt"]], "images": [[picture]]}, fixed)
        yield 1


def measure(
    name: str, options: argparse.Namespace, describe: Callable[[], Batches]
) -> dict[str, Any]:
    """Time a few rounds of describing all rows."""
    import torch

    seconds, sizes = [], [0]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for _ in range(options.rounds):
        start = time.monotonic()
        sizes = list(describe())
        seconds.append(time.monotonic() - start)
    median = statistics.median(seconds)
    result = {
        "name": name,
        "rows": sum(sizes),
        "batch": max(sizes),
        "new_tokens_per_second": round(sum(sizes) * options.new_tokens / median, 1),
        "rows_per_second": round(sum(sizes) / median, 3),
        "first_round_seconds": round(seconds[0], 1),
        "median_seconds": round(median, 1),
        "peak_gib": memory(),
    }
    print(json.dumps(result), flush=True)
    if options.profile:
        print_profile(describe)
    return result


def print_profile(describe: Callable[[], Batches]) -> None:
    """What a round spends its time on, on the GPU if there is one."""
    import torch
    from torch.profiler import profile

    with profile() as profiled:
        list(describe())
    device = "device" if torch.cuda.is_available() else "cpu"
    table = profiled.key_averages().table(
        sort_by=f"self_{device}_time_total", row_limit=30, max_name_column_width=80
    )
    print(table, flush=True)


def print_table(results: list[dict[str, Any]]) -> None:
    """Medians as Markdown."""
    print(
        "| variant | rows | batch | new tokens/s | rows/s | first round s | median s | peak GiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for result in results:
        print("| " + " | ".join(f"{value}" for value in result.values()) + " |")


if __name__ == "__main__":
    main()
