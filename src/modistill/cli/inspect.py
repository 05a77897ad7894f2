"""`modistill inspect`: what lies in a folder, and everything that is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modistill.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from modistill.data.cohort import Cohort, Fault, Severity
    from modistill.data.verify import CaseRow, Grid, Inspection

__all__ = ["command"]

_COLOURS: Mapping[Severity, str] = {"error": "bold red", "warning": "yellow", "notice": "cyan"}
_ROWS_SHOWN = 40
_LETTERS = "ABCDEFGH"


def command(
    folder: Annotated[Path, typer.Argument(help="Folder of cases, folder of one case, or a .csv/.json table of paths.")],
    json: Annotated[Path | None, typer.Option(help="Write all findings to this file too.")] = None,
    labels: Annotated[str | None, typer.Option(help="Label convention, if known: brats2021, brats2023, msd_task01 ...")] = None,
    modality: Annotated[list[str] | None, typer.Option(help="WORD=NAME: a word in file names and its modality.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 for one a core.")] = 0,
    all: Annotated[bool, typer.Option("--all", help="List every case, however many there are.")] = False,
) -> None:
    """Show what a folder holds: cases, sequences, geometry, labels, and every fault.

    Reads every file as training and prediction would, and does not stop at the first fault.
    Exit code: 0 no errors, 3 some cases have errors, 2 no case is usable.
    """
    from rich.console import Console

    from modistill.data.folder import find_cases
    from modistill.files import require_writable, write_json

    if json is not None:
        require_writable(json)
    console = Console(highlight=False)
    cohort = find_cases(folder, modalities=words(modality or []))
    inspection = _inspect(cohort, labels, workers)
    for part in _parts(inspection, all):
        console.print(part)
    if json is not None:
        write_json(json, inspection.to_json())
        console.print(f"written: {json}", style="dim", markup=False)
    raise typer.Exit(inspection.exit_code)


def words(declared: Sequence[str]) -> Mapping[str, str]:
    """`["adc=adc", "ph4=t1ce"]` -> word in file names and the modality it stands for.

    Raises:
        RecipeError: an entry is not of the form WORD=NAME.

    Example:
        >>> words(["ph4=t1ce"])
        {'ph4': 't1ce'}
    """
    for entry in declared:
        if entry.count("=") != 1 or not all(entry.split("=")):
            raise RecipeError(f"--modality {entry}", remedy="write WORD=NAME, as --modality ph4=t1ce")
    return dict(entry.split("=") for entry in declared)


def _inspect(cohort: Cohort, labels: str | None, workers: int) -> Inspection:
    """Inspect with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from modistill.data.verify import inspect_cohort

    columns = (
        TextColumn("reading"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(cohort.cases))
        return inspect_cohort(
            cohort,
            workers=workers,
            convention=labels,
            progress=lambda case: bar.update(task, advance=1, description=case),
        )


# --------------------------------------------------------------------------- what is printed


def _parts(inspection: Inspection, everything: bool) -> list[RenderableType]:
    """Summary, table of cases, faults, last line."""
    from rich.padding import Padding

    parts: list[RenderableType] = [Padding(_summary(inspection), (1, 0))]
    rows = inspection.rows
    if len(rows) > _ROWS_SHOWN and not everything:
        rows = tuple(row for row in rows if row.faults or set(row.modalities) != set(inspection.cohort.modalities))
    if rows:
        parts.append(_cases(rows, inspection))
    if len(rows) < len(inspection.rows):
        parts.append(f"[dim]{len(inspection.rows) - len(rows)} complete cases without faults are not listed (--all does)[/]")
    if inspection.all_faults:
        parts.append(Padding(_faults(inspection), (1, 0, 0, 0)))
    parts.append(Padding(_verdict(inspection), (1, 0)))
    return parts


def _summary(inspection: Inspection) -> Table:
    """Two columns: what, and what was found."""
    from rich.markup import escape
    from rich.table import Table

    cohort, rows = inspection.cohort, inspection.rows
    table = Table.grid(padding=(0, 3))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("folder", escape(str(cohort.root)))
    table.add_row("layout", cohort.layout)
    table.add_row("cases", f"{len(rows)}, {len(inspection.usable)} usable")
    counts = Counter(name for row in rows for name in row.modalities)
    present = [f"{name} {counts[name]}/{len(rows)}" for name in cohort.modalities]
    table.add_row("sequences", escape("   ".join(present)) or "none")
    counted = Counter(row.grid for row in rows if row.grid is not None)
    for index, (grid, letter) in enumerate(_grids(inspection).items()):
        shape, spacing, axes = grid
        text = f"{_by(shape)} voxels of {_by(spacing)} mm, {axes}"
        table.add_row(
            "" if index else "geometry", text if len(counted) == 1 else f"{letter}  {text}   ({_cases_of(counted[grid])})"
        )
    if len(counted) > len(_LETTERS):
        table.add_row("", f"and {len(counted) - len(_LETTERS)} other grids")
    table.add_row("labels", _labels_found(inspection))
    return table


def _labels_found(inspection: Inspection) -> str:
    """Label values over the cohort and what they mean, if that is known."""
    from modistill.data.naming import conventions

    labelled = [row for row in inspection.rows if row.labels is not None]
    if not labelled:
        return "none"
    values = sorted({value for row in labelled for value in row.labels or ()})
    listed = " ".join(f"{value:g}" for value in values[:12]) + (" ..." if len(values) > 12 else "")
    where = f"{len(labelled)}/{len(inspection.rows)} cases, values {listed}"
    if inspection.convention is None:
        return f"{where}   [yellow]convention unknown[/]"
    meaning = "  ".join(f"{value} {name}" for name, value in conventions[inspection.convention].values.items())
    return f"{where}   [green]{inspection.convention}[/]: {meaning}"


def _cases(rows: Sequence[CaseRow], inspection: Inspection) -> Table:
    """A line for each case: which sequences are there, how much of each label, which grid, how many faults."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    modalities = inspection.cohort.modalities
    grids = _grids(inspection)
    classes = _classes(inspection)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("case", overflow="fold", min_width=16)
    for name in modalities:
        table.add_column(escape(name), justify="center", no_wrap=True)
    for name in classes:
        table.add_column(f"{name} ml", justify="right")
    if len(grids) > 1:
        table.add_column("grid")
    if inspection.all_faults:
        table.add_column("faults")
    for row in rows:
        marks = [_mark(name, row, inspection.cohort) for name in modalities]
        letter = [] if len(grids) < 2 else ["" if row.grid is None else grids.get(row.grid, "other")]
        faults = [_tally(row.faults)] if inspection.all_faults else []
        table.add_row(escape(row.id), *marks, *(_volume_ml(row, value) for value in classes.values()), *letter, *faults)
    return table


def _mark(modality: str, row: CaseRow, cohort: Cohort) -> str:
    """There, not there, or there but unusable."""
    if modality in row.modalities:
        return "[green]●[/]"
    there = any(case.id == row.id and modality in case.images for case in cohort.cases)
    return "[bold red]✗[/]" if there else "[yellow]–[/]"


def _grids(inspection: Inspection) -> dict[Grid, str]:
    """The grids of the cohort, the most frequent first, each with a letter."""
    counted = Counter(row.grid for row in inspection.rows if row.grid is not None)
    return {grid: letter for (grid, _), letter in zip(counted.most_common(), _LETTERS, strict=False)}


def _classes(inspection: Inspection) -> dict[str, float]:
    """Names and values of the labels that get a column: those of the convention, or else the values found, by number."""
    from modistill.data.naming import conventions

    if inspection.convention is not None and any(row.labels for row in inspection.rows):
        return {name: float(value) for name, value in conventions[inspection.convention].values.items()}
    values = sorted({value for row in inspection.rows for value in row.labels or () if value != 0})
    return {f"label {value:g}": value for value in values[:5]}


def _volume_ml(row: CaseRow, value: float) -> str:
    if row.labels is None or row.spacing_mm is None:
        return "[yellow]–[/]"
    x, y, z = row.spacing_mm
    return f"{row.labels.get(value, 0) * x * y * z / 1000:.1f}"


def _tally(faults: Sequence[Fault]) -> str:
    """`1 error  2 warnings`, in colour."""
    parts = []
    for severity, colour in _COLOURS.items():
        count = sum(fault.severity == severity for fault in faults)
        if count:
            parts.append(f"[{colour}]{count} {severity}{'s' if count > 1 else ''}[/]")
    return "  ".join(parts)


def _faults(inspection: Inspection) -> Table:
    """A line for each fault, the severe ones first: case, file, what is wrong, what to do."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for fault in sorted(inspection.all_faults, key=lambda fault: list(_COLOURS).index(fault.severity)):
        places = [(fault.case, "bold"), (_short(fault, inspection.cohort.root), "")]
        text = Text.assemble(*[(f"{place}: ", style) for place, style in places if place], fault.reason)
        if fault.remedy:
            text.append(f" ({fault.remedy})", style="dim")
        table.add_row(Text(fault.severity, style=_COLOURS[fault.severity]), text)
    return table


def _short(fault: Fault, root: Path) -> str:
    """The file without the part that all paths share, and without the case's folder where that says nothing new."""
    file = fault.file or ""
    if not os.path.exists(file):
        return file
    relative = os.path.relpath(file, root if root.is_dir() else root.parent)
    folder, name = os.path.split(relative)
    short = name if name.startswith(os.path.basename(folder)) else relative
    return "" if short in (fault.case, ".") else short


def _verdict(inspection: Inspection) -> str:
    usable, total = len(inspection.usable), len(inspection.rows)
    if inspection.exit_code == 0:
        return f"[bold green]All {total} cases are usable.[/]" if total > 1 else "[bold green]The case is usable.[/]"
    if usable == 0:
        return "[bold red]No case is usable.[/]"
    return f"[bold yellow]{usable} of {total} cases are usable; the others are left out until their errors are repaired.[/]"


def _cases_of(count: int) -> str:
    return "1 case" if count == 1 else f"{count} cases"


def _by(sizes: Sequence[float]) -> str:
    return "x".join(f"{size:g}" for size in sizes)
