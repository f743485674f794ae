"""Pretrain the demo base model, a tiny Qwen2-VL, from nothing on drawn pictures and plain words.

    python demo/pretrain_base.py --out demo/model     # makes the committed folder, on two cores
    python demo/pretrain_base.py --verify             # makes it again and compares

The model sees generic pictures only: never the catalog's rows, house words or product names.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

# Waiting threads must sleep, not spin: on busy cores spinning makes each step many times slower.
# This counts only if it is set before torch starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from base_model import (
    build_model,
    build_processor,
    build_tokenizer,
    seed_induction,
    widen_vision_start,
)
from base_pictures import PictureBank, draw_bank
from base_scores import score
from base_text import ForbiddenText, TextMaker, tokenizer_corpus
from base_training import ChatEncoder, learn_copying, learn_seeing, learn_talking
from transformers import AutoModelForImageTextToText

HERE = Path(__file__).parent
THREADS = 2
SEED = 7
TRAINING_PICTURES = 10000
HELD_OUT_PICTURES = 400
STEPS = {"copying": 120, "seeing": 650, "talking": 1000}
SCORE_TOLERANCE = 0.02


def make_deterministic() -> None:
    """Fix everything that could make two runs on one machine differ."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)


def pretrain(out: Path, catalog: Path, share: float = 1.0) -> dict[str, float | int]:
    """Build tokenizer, processor and model, train, save below `out`, and score what was saved."""
    make_deterministic()
    started = time.monotonic()
    forbidden = ForbiddenText(catalog)
    corpus = tokenizer_corpus(TextMaker(random.Random(f"tokenizer {SEED}"), forbidden), 4000)
    tokenizer = build_tokenizer(corpus)
    processor = build_processor(tokenizer)
    encoder = ChatEncoder(processor)
    model = build_model(tokenizer)
    widen_vision_start(model)
    seed_induction(model)
    bank = draw_bank("training", round(TRAINING_PICTURES * share), processor)
    print(f"{len(bank.scenes)} pictures drawn, {time.monotonic() - started:.0f} s", flush=True)

    steps = {phase: max(1, round(count * share)) for phase, count in STEPS.items()}
    model.train()
    learn_copying(model, steps["copying"])
    learn_seeing(model, bank, steps["seeing"])
    maker = TextMaker(random.Random(f"talking {SEED}"), forbidden)
    learn_talking(model, encoder, bank, maker, steps["talking"])

    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)
    held_out = draw_bank("held out", HELD_OUT_PICTURES, processor)
    scores = score_folder(out, encoder, forbidden, held_out)
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    print(f"{scores} after {time.monotonic() - started:.0f} s", flush=True)
    return scores


def score_folder(
    folder: Path, encoder: ChatEncoder, forbidden: ForbiddenText, bank: PictureBank
) -> dict[str, float | int]:
    """Load the saved model as a user would and score it."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    return score(model, encoder, TextMaker(random.Random("unseen names"), forbidden), bank)


def verify(committed: Path, catalog: Path) -> bool:
    """Pretrain again in a temporary folder and say how the result compares."""
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder)
        scores = pretrain(again, catalog)
        differing = [
            path.name
            for path in sorted(again.iterdir())
            if path.read_bytes() != (committed / path.name).read_bytes()
        ]
    if not differing:
        print("bit-equal: every file is the same as the committed one")
        return True
    before = json.loads((committed / "scores.json").read_text(encoding="utf-8"))
    within = all(abs(scores[key] - before[key]) <= SCORE_TOLERANCE for key in before)
    print(f"not bit-equal, these differ: {', '.join(differing)}")
    print(f"scores {'within' if within else 'NOT within'} {SCORE_TOLERANCE} of the committed ones")
    return within


def main() -> None:
    """Parse the command line and pretrain, or verify."""
    parser = argparse.ArgumentParser(description="Pretrain the demo base model from nothing.")
    parser.add_argument("--out", type=Path, default=HERE / "model", help="folder to write to")
    parser.add_argument("--catalog", type=Path, default=HERE / "catalog", help="the demo catalog")
    parser.add_argument("--share", type=float, default=1.0, help="train on this share of the steps")
    parser.add_argument("--verify", action="store_true", help="rebuild and compare with --out")
    arguments = parser.parse_args()
    if arguments.verify:
        raise SystemExit(0 if verify(arguments.out, arguments.catalog) else 1)
    pretrain(arguments.out, arguments.catalog, arguments.share)


if __name__ == "__main__":
    main()
