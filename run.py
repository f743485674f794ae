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

import atexit
import logging
import sys

from orchestration.arguments import parse
from orchestration.commands import FAILED
from vlmtune.environment import drop_inherited_variables, hide_traces_of, prepare_environment
from vlmtune.errors import UserError

INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Run a command or a pipeline; returns the exit code."""
    ignored = drop_inherited_variables()
    prepare_environment()
    options = parse(arguments)
    if ignored:
        print(f"ignored (see docs/operations.md): {', '.join(ignored)}", file=sys.stderr)
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


def end_logging() -> None:
    """Flush the logs while there is still time: ZenML's handler does it in a new thread, which
    Python 3.12 refuses, with a stack trace, once the interpreter is shutting down."""
    logging.shutdown()
    atexit.unregister(logging.shutdown)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    end_logging()
    sys.exit(exit_code)
