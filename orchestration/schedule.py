"""Handing a run to a stack that can schedule, or the crontab line that does it here."""

import shlex
import sys
from pathlib import Path

from orchestration.inputs import resolve_inputs
from orchestration.pipeline_run import FINETUNE, configured_pipeline
from orchestration.stack import use_stack
from orchestration.trained_model import TrainedModel
from orchestration.training_plan import resolve_training
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError
from vlmtune.tracking.registry import LATEST

CRON_FIELDS = 5


def check_cron(expression: str) -> str:
    """Raise UserError unless it is a cron expression of five fields, as crontab takes them."""
    from croniter import croniter

    if len(expression.split()) != CRON_FIELDS or not croniter.is_valid(expression):
        raise UserError(
            f"--schedule {expression!r} is no cron expression.",
            'Five fields are expected: minute hour day month weekday, as in "0 3 * * 1".',
        )
    return expression


def schedule(
    name: str,
    config: FinetuneConfig,
    cron: str,
    stack_name: str | None,
    arguments: list[str],
    trained: TrainedModel | None = None,
) -> str:
    """Schedule the run; returns what to tell the user.

    The catalog is resolved anew at each scheduled run; the base model stays at the revision it
    has now.

    Args:
        name: of the pipeline.
        arguments: the command line after `run.py`, without `--schedule`.
        trained: the model that describes.
    """
    check_cron(cron)
    stack = use_stack(stack_name)
    if not stack.can_schedule:
        return (
            f"The stack {stack.name} cannot schedule. This crontab line does it (crontab -e):\n"
            f"{crontab_line(cron, arguments)}"
        )
    from zenml.config.schedule import Schedule

    base = resolve_inputs(config, trained).base
    if trained is None:
        config, _ = resolve_training(config, base)
    # What it is made from, and what it has to beat, is known only when it runs.
    pipeline = configured_pipeline(name, config, run_name=None, use_cache=True, made_from="")
    pipeline = pipeline.with_options(schedule=Schedule(cron_expression=cron))
    pipeline(
        config=config,
        catalog_version=None,
        base=base,
        tracker=stack.tracker,
        **({"champion": LATEST, "registered": False} if name == FINETUNE else {}),
        **({"chosen": trained.chosen} if trained else {"previous": None}),
    )
    return f"Scheduled on the stack {stack.name}: {cron}"


def crontab_line(cron: str, arguments: list[str]) -> str:
    """A line for `crontab -e` that runs the same command from this folder."""
    command = shlex.join([sys.executable, "run.py", *arguments])
    folder = shlex.quote(str(Path.cwd()))
    line = f"cd {folder} && mkdir -p runs && {command} >> runs/cron.log 2>&1"
    return f"{cron} {line.replace('%', chr(92) + '%')}"  # cron takes a bare % for a line's end
