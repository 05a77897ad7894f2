"""What `predict` and `translate` share: which cases are meant, how far they are, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modistill.errors import CaseError, FileError, RecipeError

if TYPE_CHECKING:
    from modistill.data.cohort import Cohort
    from modistill.inference.cohort import CaseRow, Progress

__all__ = ["cases_meant", "print_rows", "require_apart", "watched"]

_ROWS_SHOWN = 40


def cases_meant(path: Path | None, files: Sequence[str], words: Sequence[str], *, task: str) -> Cohort:
    """The cases under a path, or the one made of single files.

    Args:
        path: of `--input`.
        files: of `--file`, NAME=FILE each.
        words: of `--modality`, WORD=NAME each.
        task: the verb, for messages.

    Raises:
        RecipeError: neither or both are given, or one cannot be understood.
        CaseError: a sequence is given twice, or there is no case.
    """
    from modistill.cli.inspect import words as declared
    from modistill.data.folder import Cohort, case_from_files, find_cases

    if (path is None) == (not files):
        raise RecipeError(f"nothing to {task}" if path is None else "--input and --file exclude each other", remedy="give one")
    if path is not None:
        return find_cases(path, modalities=declared(words))
    named: dict[str, Path] = {}
    for entry in files:
        name, separator, place = entry.partition("=")
        if not separator or not name or not place:
            raise RecipeError(f"--file {entry}", remedy="write NAME=FILE, as --file t1=scan.nii.gz")
        if name in named:
            raise CaseError(f"{name} is given twice", remedy="give one file for each sequence")
        named[name] = Path(place)
    return Cohort(Path("."), "files", (case_from_files(named),))


def require_apart(path: Path | None, output: Path) -> None:
    """Refuse to write among the patients: the next run would take what was written for cases.

    Raises:
        FileError: the output lies inside the input folder.
    """
    if path is not None and path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise FileError("lies inside the input folder", file=output, remedy="choose a folder beside it")


def watched(task: str, cohort: Cohort, work: Callable[[Progress], Iterator[CaseRow]]) -> list[CaseRow]:
    """The rows of a cohort, shown as they come: a bar with an ETA on a terminal, a line a case elsewhere."""
    total = len({case.id for case in cohort.cases} | {fault.case for fault in cohort.faults if fault.severity == "error"})
    rows = []
    with _Display(task, total) as display:
        display.told(str(fault) for fault in cohort.faults if fault.severity != "error" or fault.case is None)
        for row in work(display.at):
            display.finished(row)
            rows.append(row)
    return rows


def print_rows(rows: Sequence[CaseRow], output: Path) -> None:
    """The table of cases, why each model was chosen, and the counts."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    shown = rows if len(rows) <= _ROWS_SHOWN else [row for row in rows if row.status == "failed"][:_ROWS_SHOWN]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("case", "status", "model", "sequences read"):
        table.add_column(name, overflow="fold")
    table.add_column("seconds", justify="right")
    colours = {"done": "green", "skipped": "cyan", "failed": "bold red"}
    for row in shown:
        status = f"[{colours[row.status]}]{row.status}[/]"
        table.add_row(row.case, status, row.model or "–", " ".join(row.available) or "–", f"{row.seconds:.1f}")
    if shown:
        console.print(table)
    for reason, count in Counter(row.reason for row in rows if row.status == "done").items():
        console.print(f"{count} {'case' if count == 1 else 'cases'}: {reason}", style="dim", markup=False)
    counts = Counter(row.status for row in rows)
    told = ", ".join(f"{counts[status]} {status}" for status in ("done", "skipped", "failed") if counts[status])
    console.print(f"{told or 'no case'} -> {output} (report.json names every case)", markup=False)


class _Display:
    """A bar or lines; what failed is said at once, in either."""

    def __init__(self, name: str, total: int) -> None:
        from rich.console import Console

        from modistill.cli.progress import bar

        self.name, self.total, self.done = name, total, 0
        self.console = Console(stderr=True, highlight=False)
        self.progress = bar(self.console) if self.console.is_terminal else None
        self.task: Any = None

    def __enter__(self) -> _Display:
        if self.progress is not None:
            self.progress.start()
            self.task = self.progress.add_task(self.name, total=self.total, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def at(self, case: str, model: str, fraction: float) -> None:
        """A case is so far done, by this model."""
        if self.progress is not None:
            self.progress.update(self.task, completed=self.done + fraction, note=f"{case}  {model}  {fraction:.0%}")

    def told(self, notices: Iterable[str]) -> None:
        """Say what a user should know."""
        for notice in notices:
            self.console.print(f"notice: {notice}", markup=False, soft_wrap=True)

    def finished(self, row: CaseRow) -> None:
        """A case is done, one way or the other."""
        self.done += 1
        if row.status == "failed":
            self.console.print(f"error: {row}", markup=False, soft_wrap=True)
        self.told(f"{row.case}: {notice}" for notice in row.notices)
        if self.progress is not None:
            self.progress.update(self.task, completed=self.done)
        elif row.status != "failed":
            how = f"{row.model}, {row.seconds:.1f} s" if row.status == "done" else row.reason
            self.console.print(f"{self.done}/{self.total} {row.case}: {how}", markup=False, soft_wrap=True)
