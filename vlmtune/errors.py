"""The one error that is meant for the user, not for a developer."""


class UserError(Exception):
    """Something the user can mend: says what is wrong and what to do about it.

    `run.py` prints it as one clear line without a stack trace (unless `--verbose`) and exits
    with `exit_code`.

    Args:
        problem: what was found, naming the row, field, key or file.
        mend: what to do about it.
    """

    exit_code = 2

    def __init__(self, problem: str, mend: str = "") -> None:
        space = "" if problem.endswith("\n") else " "
        super().__init__(f"{problem}{space}{mend}".strip())
        self.problem = problem
        self.mend = mend


class ConfigError(UserError):
    """The configuration cannot be used: unknown key, wrong type, impossible value."""


class GateFailed(UserError):
    """The gate has failed a model: the run ends with an exit code of its own."""

    exit_code = 3
