"""The command line: one file a command, and one place where errors become one line and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line.

    Exit codes: 0 done, 2 bad input or usage, 3 partly done, 4 training stopped, 128 + n stopped by signal n, 1 a bug.
    `--debug`, anywhere, shows the traceback of an error instead of its one line.
    """
    arguments = sys.argv[1:] or ["--help"]
    debug = "--debug" in arguments
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        raise SystemExit(_run([argument for argument in arguments if argument != "--debug"], debug))
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: Sequence[str], debug: bool) -> int:
    """Run one command; returns its exit code. Errors are printed here, and nowhere else."""
    import typer

    from modistill.cli.app import app
    from modistill.errors import ModistillError

    usage_error: Any = typer.BadParameter.__base__  # click's, of which newer versions of typer carry their own copy
    try:
        code = app(arguments, standalone_mode=False)
    except ModistillError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except usage_error as error:
        command = "modistill" if error.ctx is None else error.ctx.command_path
        print(f"error: {error.format_message().rstrip('.')} (see {command} --help)", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        print("stopped", file=sys.stderr)
    return int(code or 0)


def _terminated(number: int, _: object) -> NoReturn:
    """Leave through every `finally`, so that half-written files are removed and locks and processes are given back."""
    raise SystemExit(128 + number)
