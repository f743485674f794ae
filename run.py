"""vlmtune's command line: parse, resolve the config, run, print where to look.

    python run.py --pipeline finetune
    python run.py --pipeline finetune --config configs/qwen2vl_7b.yaml --set seed=7
    python run.py --pipeline check --config configs/qwen2vl_7b.yaml
    python run.py --pipeline evaluate --version v3
    python run.py --pipeline publish --set hub.repo_id=owner/name
    python run.py versions
    python run.py promote v3
    python run.py rollback
    python run.py --pipeline describe --config new.yaml --version champion --model-config shop.yaml
    python run.py init FOLDER
    python run.py try PICTURE --name "..." --category "..."
    python run.py lineage latest

Exit codes: 0 done; 1 a step failed; 2 something to mend in the config, the catalog or the
machine (one clear line says what); 3 the gate failed the model; 130 interrupted.
"""

import argparse
import atexit
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vlmtune.environment import hide_traces_of, prepare_environment
from vlmtune.errors import UserError

if TYPE_CHECKING:
    from orchestration.trained_model import TrainedModel
    from vlmtune.config.tree import FinetuneConfig
    from vlmtune.tracking.registry import Move, Registry

PIPELINES = ("finetune", "check", "evaluate", "publish", "describe")
ON_VERSIONS = ("evaluate", "publish")
COMMANDS = ("init", "lineage", "try", "versions", "promote", "rollback")
FAILED, GATE_FAILED, INTERRUPTED = 1, 3, 130
INIT_HELP = """\
Look at the first rows of a local catalog, guess what its columns mean (picture, name, category,
brand, description) and write a config for it, with comments on what else could be set. Nothing
of the catalog is changed, and nothing is downloaded.

    python run.py init shop                            writes shop.yaml
    python run.py init shop/products.csv --output configs/shop.yaml
    python run.py init shop --like configs/demo.yaml   with the demo's small model

Then read the config, and look at the catalog row by row:

    python run.py --pipeline check --config shop.yaml
"""


def main(arguments: list[str]) -> int:
    """Run a command or a pipeline; returns the exit code."""
    prepare_environment()
    options = parse(arguments)
    if not options.verbose:
        hide_traces_of(UserError)
    logging.getLogger("vlmtune").setLevel(logging.INFO)
    logging.getLogger("orchestration").setLevel(logging.INFO)
    try:
        return options.run(options)
    except UserError as error:
        if options.verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from where it was", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.verbose:
            raise
        print(f"error: the run failed: {type(error).__name__}: {error}", file=sys.stderr)
        print("Add --verbose for the stack trace.", file=sys.stderr)
        return FAILED


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line as options; a command (`init`, `lineage`, `try`) or else a pipeline."""
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command in COMMANDS and arguments[0] == command:
        return command_parser().parse_args(arguments)
    return pipeline_parser().parse_args(arguments)


class Parser(argparse.ArgumentParser):
    """A parser that tells what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for an unusable command line."""
        self.exit(UserError.exit_code, f"error: {message}. See: run.py --help\n")


def pipeline_parser() -> argparse.ArgumentParser:
    """Options of `run.py --pipeline`."""
    parser = Parser(
        prog="run.py",
        allow_abbrev=False,  # a crontab line must be free of --schedule, however it was written
        description="Fine-tune a vision-language model on a product catalog.",
        epilog="Commands that are no pipeline, each with a --help of its own: run.py "
        + ", ".join(COMMANDS)
        + ".\nExit codes: 0 done; 1 a step failed; 2 something to mend in the config, the catalog "
        "or the machine; 3 the gate failed the model; 130 interrupted.",
    )
    parser.add_argument(
        "--pipeline",
        choices=PIPELINES,
        required=True,
        help="what to run: finetune; check, which reads and judges the catalog only; evaluate, "
        "which judges a registered version again; publish, which pushes one; or describe, which "
        "writes descriptions for a new catalog with a trained model",
    )
    parser.add_argument(
        "--version",
        metavar="VERSION",
        help="with evaluate, publish and describe: v3, champion or challenger (default: the "
        "champion is evaluated, the newest version that is not on the Hub is published)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("configs/demo.yaml"),
        metavar="FILE",
        help="the configuration (default: %(default)s, which needs no GPU and no network)",
    )
    parser.add_argument(
        "--model-run",
        type=Path,
        metavar="FOLDER",
        help="with describe: folder of the run whose model, prompt and rules are taken; --config "
        "then says only what the new catalog is (default: runs/latest)",
    )
    parser.add_argument(
        "--model-config",
        type=Path,
        metavar="FILE",
        help="with describe and --version: the config of the catalog whose versions are meant "
        "(default: --config)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the config, as in --set training.learning_rate=1e-4; repeatable",
    )
    parser.add_argument(
        "--stack", metavar="NAME", help="your own ZenML stack (default: a local one)"
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="run every step, even if nothing changed"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and the plan, run nothing"
    )
    parser.add_argument(
        "--schedule",
        metavar="CRON",
        help='run regularly, as in --schedule "0 3 * * 1": on a stack that can schedule, or else '
        "by the crontab line that is printed",
    )
    _add_verbose(parser)
    parser.set_defaults(run=start_pipeline)
    return parser


def command_parser() -> argparse.ArgumentParser:
    """Options of `run.py init`, `run.py lineage` and `run.py try`."""
    parser = Parser(prog="run.py")
    commands = parser.add_subparsers(required=True)
    _add_init(commands)
    lineage = commands.add_parser(
        "lineage", help="from a merged model back to its catalog, base model and code"
    )
    lineage.add_argument("name", help="name of a run, or latest")
    lineage.add_argument("--runs-dir", type=Path, default=Path("runs"), help="default: runs")
    lineage.set_defaults(run=show_lineage)
    trial = commands.add_parser(
        "try", help="describe one picture with base, adapter and merged model, side by side"
    )
    trial.add_argument("picture", type=Path, help="a picture file")
    trial.add_argument("--name", help="the product's name")
    trial.add_argument("--category", help="the product's category")
    trial.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="FIELD=TEXT",
        help="any other field that the prompt's template names; repeatable",
    )
    trial.add_argument(
        "--run",
        dest="run_folder",
        type=Path,
        default=Path("runs/latest"),
        help="folder of the run whose models are tried (default: %(default)s)",
    )
    trial.set_defaults(run=try_picture)
    _add_registry_commands(commands)
    for command in commands.choices.values():
        _add_verbose(command)
    return parser


def _add_registry_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    versions = commands.add_parser(
        "versions",
        help="the registered versions of a catalog's models, and every change of champion",
    )
    versions.set_defaults(run=show_versions)
    promote = commands.add_parser("promote", help="make a version the champion")
    promote.add_argument("version", help="as v3, or challenger")
    promote.set_defaults(run=promote_version)
    rollback = commands.add_parser(
        "rollback", help="make the champion before the present one the champion again"
    )
    rollback.set_defaults(run=roll_back)
    for command in (versions, promote, rollback):
        command.add_argument(
            "--config",
            type=Path,
            default=Path("configs/demo.yaml"),
            metavar="FILE",
            help="the configuration that names the catalog (default: %(default)s)",
        )
        command.add_argument("--stack", metavar="NAME", help="your own ZenML stack")
    for command in (promote, rollback):
        command.add_argument("--why", default="by hand", help="kept with the change")


def _add_init(commands: "argparse._SubParsersAction[Parser]") -> None:
    init = commands.add_parser(
        "init",
        help="write a starter config for a catalog of your own",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=INIT_HELP,
    )
    init.add_argument(
        "source",
        type=Path,
        metavar="FOLDER",
        help="a folder with a table, or the table itself: csv, tsv, jsonl or parquet",
    )
    init.add_argument(
        "--like",
        type=Path,
        default=Path("configs/qwen2vl_7b.yaml"),
        metavar="FILE",
        help="the config whose model and training are taken over (default: %(default)s)",
    )
    init.add_argument(
        "--output", type=Path, metavar="FILE", help="default: FOLDER's name with .yaml, here"
    )
    init.add_argument("--force", action="store_true", help="write over a file that is there")
    init.set_defaults(run=init_config)


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="stack traces instead of one line")


def start_pipeline(options: argparse.Namespace) -> int:
    """`--pipeline NAME`, with `--dry-run` and `--schedule`."""
    from vlmtune.config.loading import dump_config

    config, trained = _resolve(options)
    if options.pipeline in ON_VERSIONS:
        return _run_on_version(options, config)
    if options.version and options.pipeline != "describe":
        raise UserError(f"--version does not go with --pipeline {options.pipeline}.")
    if options.dry_run:
        from orchestration.inputs import resolve_inputs
        from orchestration.pipeline_run import FINETUNE, plan
        from orchestration.training_plan import resolve_training

        inputs = resolve_inputs(config, trained)
        if options.pipeline == FINETUNE:
            config, _ = resolve_training(config, inputs.base)
        print(dump_config(config))
        for step, what in plan(options.pipeline, config, inputs, trained):
            print(f"{step:<22} {what}")
        return 0
    if options.schedule:
        from orchestration.schedule import schedule

        arguments = _without_schedule(sys.argv[1:])
        print(
            schedule(options.pipeline, config, options.schedule, options.stack, arguments, trained)
        )
        return 0
    from orchestration.console import print_outcome
    from orchestration.pipeline_run import run_pipeline

    outcome = run_pipeline(
        options.pipeline, config, options.stack, use_cache=not options.no_cache, trained=trained
    )
    print_outcome(outcome)
    return exit_code_of(outcome.summary)


def exit_code_of(summary: dict[str, Any]) -> int:
    """What a scheduler is told."""
    if (summary["gate"] or {}).get("verdict") == "failed":
        return GATE_FAILED
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


def end_logging() -> None:
    """Flush the logs while there is still time: ZenML's handler does it in a new thread, which
    Python 3.12 refuses, with a stack trace, once the interpreter is shutting down."""
    logging.shutdown()
    atexit.unregister(logging.shutdown)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    end_logging()
    sys.exit(exit_code)
