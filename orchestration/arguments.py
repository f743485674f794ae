"""What can be said on the command line, and which command each of it calls."""

import argparse
from pathlib import Path
from typing import NoReturn

from orchestration import commands
from vlmtune.errors import UserError

PIPELINES = ("finetune", "check", "evaluate", "publish", "describe")
COMMANDS = ("init", "lineage", "try", "versions", "promote", "rollback")
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
    _add_config(parser, "the configuration (default: %(default)s; needs no GPU and no network)")
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
    _add_stack(parser)
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
    parser.set_defaults(run=commands.start_pipeline)
    return parser


def command_parser() -> argparse.ArgumentParser:
    """Options of `run.py init`, `run.py lineage` and `run.py try`."""
    parser = Parser(prog="run.py")
    words = parser.add_subparsers(required=True)
    _add_init(words)
    lineage = words.add_parser(
        "lineage", help="from a merged model back to its catalog, base model and code"
    )
    lineage.add_argument("name", help="name of a run, or latest")
    lineage.add_argument("--runs-dir", type=Path, default=Path("runs"), help="default: runs")
    lineage.set_defaults(run=commands.show_lineage)
    trial = words.add_parser(
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
    trial.set_defaults(run=commands.try_picture)
    _add_registry_commands(words)
    for command in words.choices.values():
        _add_verbose(command)
    return parser


def _add_registry_commands(words: "argparse._SubParsersAction[Parser]") -> None:
    versions = words.add_parser(
        "versions",
        help="the registered versions of a catalog's models, and every change of champion",
    )
    versions.set_defaults(run=commands.show_versions)
    promote = words.add_parser("promote", help="make a version the champion")
    promote.add_argument("version", help="as v3, or challenger")
    promote.set_defaults(run=commands.promote_version)
    rollback = words.add_parser(
        "rollback", help="make the champion before the present one the champion again"
    )
    rollback.set_defaults(run=commands.roll_back)
    for command in (versions, promote, rollback):
        _add_config(command, "the configuration that names the catalog (default: %(default)s)")
        _add_stack(command)
    for command in (promote, rollback):
        command.add_argument("--why", default="by hand", help="kept with the change")


def _add_init(words: "argparse._SubParsersAction[Parser]") -> None:
    init = words.add_parser(
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
    init.set_defaults(run=commands.init_config)


def _add_config(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--config", type=Path, default=Path("configs/demo.yaml"), metavar="FILE", help=what
    )


def _add_stack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stack", metavar="NAME", help="your own ZenML stack (default: a local one)"
    )


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="stack traces instead of one line")
