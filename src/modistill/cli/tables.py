"""Tables and notes on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from modistill.evaluation.tables import TextTable

__all__ = ["print_notes", "print_table"]


def print_table(table: TextTable) -> None:
    """Print a table; names stand left, numbers right, so that decimals line up."""
    from rich import box
    from rich.table import Table

    shown = Table(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    names = sum(name in ("read", "region", "metric", "arm", "run") for name in table.header)
    for column, name in enumerate(table.header):
        lines = name.replace(" (", "\n(").replace(" [", "\n[")
        shown.add_column(lines, justify="left" if column < names else "right", no_wrap=column < names)
    for index, row in enumerate(table.rows):
        shown.add_row(*row, end_section=index in table.sections)
    _console().print(shown)


def print_notes(notes: Iterable[str]) -> None:
    """Print the small print below a table."""
    console = _console()
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False)


def _console() -> Console:
    """The terminal; a file or pipe is wide enough for every table, as nobody can widen it afterwards."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console
