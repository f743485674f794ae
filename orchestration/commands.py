"""What the command line's words do: resolve the config, run, print where to look.

Heavy packages are imported inside, so that `run.py --help` answers at once.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vlmtune.errors import UserError

if TYPE_CHECKING:
    from orchestration.trained_model import TrainedModel
    from vlmtune.config.tree import FinetuneConfig
    from vlmtune.tracking.registry import Move, Registry

ON_VERSIONS = ("evaluate", "publish")
FAILED, GATE_FAILED = 1, 3


def start_pipeline(options: argparse.Namespace) -> int:
    """`--pipeline NAME`, with `--dry-run` and `--schedule`."""
    config, trained = _resolve(options)
    if options.pipeline in ON_VERSIONS:
        return _run_on_version(options, config)
    if options.version and options.pipeline != "describe":
        raise UserError(f"--version does not go with --pipeline {options.pipeline}.")
    if options.dry_run:
        return _show_plan(options, config, trained)
    if options.schedule:
        return _schedule(options, config, trained)
    from orchestration.console import print_outcome
    from orchestration.pipeline_run import run_pipeline

    outcome = run_pipeline(
        options.pipeline, config, options.stack, use_cache=not options.no_cache, trained=trained
    )
    print_outcome(outcome)
    return exit_code_of(outcome.summary)


def _show_plan(
    options: argparse.Namespace, config: "FinetuneConfig", trained: "TrainedModel | None"
) -> int:
    """`--dry-run`."""
    from orchestration.inputs import resolve_inputs
    from orchestration.pipeline_run import FINETUNE, plan
    from orchestration.training_plan import resolve_training
    from vlmtune.config.loading import dump_config

    inputs = resolve_inputs(config, trained)
    if options.pipeline == FINETUNE:
        config, _ = resolve_training(config, inputs.base)
    print(dump_config(config))
    for step, what in plan(options.pipeline, config, inputs, trained):
        print(f"{step:<22} {what}")
    return 0


def _schedule(
    options: argparse.Namespace, config: "FinetuneConfig", trained: "TrainedModel | None"
) -> int:
    """`--schedule CRON`."""
    from orchestration.schedule import schedule

    arguments = _without_schedule(sys.argv[1:])
    print(schedule(options.pipeline, config, options.schedule, options.stack, arguments, trained))
    return 0


def exit_code_of(summary: dict[str, Any]) -> int:
    """What a scheduler is told."""
    if (summary["gate"] or {}).get("verdict") == "failed":
        return GATE_FAILED
    if not (summary["registry"] or {}).get("settled", True):
        return FAILED
    return 0 if summary["status"] in ("completed", "cached") else FAILED


def _run_on_version(options: argparse.Namespace, config: "FinetuneConfig") -> int:
    if options.dry_run or options.schedule:
        raise UserError(f"--pipeline {options.pipeline} takes no --dry-run and no --schedule.")
    from orchestration.console import print_outcome
    from orchestration.version_run import run_on_version

    outcome = run_on_version(
        options.pipeline, config, options.version, options.stack, not options.no_cache
    )
    print_outcome(outcome)
    return exit_code_of(outcome.summary)


def _resolve(options: argparse.Namespace) -> "tuple[FinetuneConfig, TrainedModel | None]":
    """The config, and for describing the model and what its run decided."""
    from vlmtune.config.loading import load_config, load_describing_config

    if options.pipeline != "describe":
        if options.model_run or options.model_config:
            given = "--model-run" if options.model_run else "--model-config"
            raise UserError(f"{given} goes with --pipeline describe only.")
        return load_config(options.config, options.set), None
    from orchestration.trained_model import LATEST, model_of_run, model_of_version

    if options.version and options.model_run:
        raise UserError("--version and --model-run both name a model.", "Give one of them.")
    if options.version:
        from orchestration.champion import require_registry

        named = load_config(options.model_config or options.config)
        trained = model_of_version(require_registry(named, options.stack).find(options.version))
    else:
        trained = model_of_run(options.model_run or LATEST)
    return load_describing_config(options.config, trained.config, options.set), trained


def _without_schedule(arguments: list[str]) -> list[str]:
    kept = [word for word in arguments if not word.startswith("--schedule=")]
    if "--schedule" in kept:
        at = kept.index("--schedule")
        del kept[at : at + 2]
    return kept


def init_config(options: argparse.Namespace) -> int:
    """`run.py init FOLDER`."""
    from orchestration.init_config import default_output, print_guess, write_config
    from vlmtune.catalog.starter.guess import guess_catalog

    output = options.output or default_output(options.source)
    guess = guess_catalog(options.source)
    write_config(guess, options.like, output, options.force)
    print_guess(guess, output)
    return 0


def show_lineage(options: argparse.Namespace) -> int:
    """`run.py lineage NAME`."""
    from rich.console import Console

    from orchestration.lineage import lineage_tree

    # Not wrapped: addresses and digests are there to be copied.
    Console(width=250, highlight=False).print(lineage_tree(options.name, options.runs_dir))
    return 0


def show_versions(options: argparse.Namespace) -> int:
    """`run.py versions`."""
    from orchestration.console import print_versions

    print_versions(_registry(options))
    return 0


def promote_version(options: argparse.Namespace) -> int:
    """`run.py promote VERSION`."""
    registry = _registry(options)
    return _moved(registry, registry.promote(registry.find(options.version), options.why))


def roll_back(options: argparse.Namespace) -> int:
    """`run.py rollback`."""
    registry = _registry(options)
    return _moved(registry, registry.rollback(options.why))


def _registry(options: argparse.Namespace) -> "Registry":
    from orchestration.champion import require_registry
    from vlmtune.config.loading import load_config

    return require_registry(load_config(options.config), options.stack)


def _moved(registry: "Registry", move: "Move") -> int:
    from orchestration.champion import follow_registry

    follow_registry(registry)
    before = f"v{move.before}" if move.before else "none"
    print(f"{registry.name}: the champion was {before} and is v{move.after} now")
    return 0


def try_picture(options: argparse.Namespace) -> int:
    """`run.py try PICTURE`."""
    from orchestration.console import print_descriptions
    from orchestration.try_picture import describe_picture, open_run

    for pair in options.field:
        if "=" not in pair:
            raise UserError(f"--field {pair}: FIELD=TEXT is expected.")
    fields = dict(pair.split("=", 1) for pair in options.field)
    fields |= {
        field: value
        for field, value in (("name", options.name), ("category", options.category))
        if value is not None
    }
    tried = open_run(options.run_folder)
    print_descriptions(describe_picture(tried, options.picture, fields))
    return 0
