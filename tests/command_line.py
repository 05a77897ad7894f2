"""The command line as a user calls it, in this process."""

from __future__ import annotations

import sys

from modistill.cli import main


def run_main(*arguments: object) -> int:
    """Run `modistill ARGUMENTS`; returns the exit code."""
    before = sys.argv
    sys.argv = ["modistill", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
