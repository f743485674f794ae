"""Cron expressions and the crontab line."""

import subprocess
from pathlib import Path

import pytest

from orchestration.commands import _without_schedule
from orchestration.schedule import check_cron, crontab_line
from vlmtune.errors import UserError


@pytest.mark.parametrize("cron", ["0 3 * * 1", "*/5 0-6 1,15 * MON-FRI", "30 4 1 jan *"])
def test_cron_expression(cron: str) -> None:
    """Five fields are taken as they are."""
    assert check_cron(cron) == cron


@pytest.mark.parametrize(
    "cron", ["", "daily", "0 3 * *", "0 3 * * 1 2", "0 3 * * $(id)", "0 3 * * 1;id", "@daily"]
)
def test_no_cron_expression(cron: str) -> None:
    """Anything else shows what is expected."""
    with pytest.raises(UserError, match="minute hour day month weekday"):
        check_cron(cron)


def test_crontab_line_runs_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line, run as cron runs it, hands over the same arguments in the same folder, also in
    a fresh checkout and with spaces, quotes and per cent signs in it."""
    folder = tmp_path / "a folder's"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "run.py").write_text("import os, sys; print(os.getcwd(), sys.argv[1:])")
    arguments = ["--pipeline", "finetune", "--set", 'prompt.system=100% "wool" it\'s $HOME']
    line = crontab_line("0 3 * * 1", arguments)
    assert line.startswith("0 3 * * 1 cd ")
    command = line.removeprefix("0 3 * * 1 ")
    assert "%" not in command.replace("\\%", "")  # cron ends a command at a bare one
    subprocess.run(["sh", "-c", command.replace("\\%", "%")], cwd="/", check=True)
    assert (folder / "runs/cron.log").read_text() == f"{folder} {arguments}\n"


@pytest.mark.parametrize(
    "schedule", [["--schedule", "0 3 * * 1"], ["--schedule=0 3 * * 1"]], ids=["two words", "one"]
)
def test_scheduled_command_does_not_schedule(schedule: list[str]) -> None:
    """The command that cron runs is the given one without --schedule."""
    rest = ["--pipeline", "finetune", "--set", "seed=1"]
    assert _without_schedule([*rest[:2], *schedule, *rest[2:]]) == rest
