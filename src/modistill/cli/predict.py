"""`modistill predict`: label maps for patients, whatever sequences they have."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modistill.errors import CaseError, FileError, RecipeError

if TYPE_CHECKING:
    from modistill.data.cohort import Cohort
    from modistill.inference.cohort import CaseRow
    from modistill.inference.model import Model
    from modistill.inference.outputs import IfNotEmpty, OutputFolder
    from modistill.inference.predictor import Predictor

__all__ = ["command"]

_ROWS_SHOWN = 40


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write: CASE.nii.gz, CASE.json, report.json.")],
    model: Annotated[
        list[Path],
        typer.Option("--model", "-m", help="Run folder of a trained model; of several, each case gets the fitting one."),
    ],
    input: Annotated[
        Path | None, typer.Option("--input", "-i", help="Case folder, folder of cases in any layout, or a .csv/.json table.")
    ] = None,
    file: Annotated[
        list[str] | None, typer.Option("--file", help="NAME=FILE, one for each sequence of a single case, instead of --input.")
    ] = None,
    mirror: Annotated[
        bool | None,
        typer.Option(
            "--mirror/--no-mirror", help="Average with the left-right mirrored view.", show_default="as the model says"
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Of neighbouring windows, as a fraction.", show_default="as the model says"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str, typer.Option("--precision", help="auto, 32, bf16-mixed.")] = "auto",
    labels: Annotated[
        str | None, typer.Option("--labels", help="Label convention to write.", show_default="as the input's names tell")
    ] = None,
    modality: Annotated[list[str] | None, typer.Option(help="WORD=NAME: a word in file names and its modality.")] = None,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Also write probabilities/CASE/REGION.nii.gz.")
    ] = False,
    only: Annotated[
        str | None, typer.Option("--only", help="Use these sequences alone, as --only t1,flair.", show_default="all there are")
    ] = None,
    subsets: Annotated[
        bool,
        typer.Option("--subsets", help="Once for every subset of the sequences, into folders like OUTPUT/t1+flair."),
    ] = False,
    passes: Annotated[
        int, typer.Option("--mc-dropout", min=0, help="Average over so many passes with dropout; the papers use 100.")
    ] = 0,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Average over all models that read the same, instead of choosing one.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the dropout passes.")] = 0,
    uncertainty: Annotated[
        bool,
        typer.Option("--uncertainty", help="Also write uncertainty/CASE/REGION.nii.gz; 100 is the largest entropy possible."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict again what is there already.")] = False,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Leave cases that are done and still match; do the others.")
    ] = False,
) -> None:
    """Segment patients on their own grid, in their own label numbers.

    Each case is given to the model that reads most of its sequences; files that this model does not read are never opened.
    A bad case is reported and the others go on. Exit code: 0 all done, 3 some failed, 2 none could be done.
    """
    cohort = _cohort(input, file or [], modality or [])
    _require_apart(input, output)
    if overwrite and go_on:
        raise RecipeError("--overwrite and --continue exclude each other")
    if subsets and only is not None:
        raise RecipeError("--subsets and --only exclude each other")
    if precision not in ("auto", "32", "bf16-mixed"):
        raise RecipeError(f"no precision {precision!r}", remedy="auto or 32 or bf16-mixed")

    from modistill.inference.cohort import exit_code
    from modistill.inference.outputs import OutputFolder
    from modistill.inference.predictor import Predictor
    from modistill.runs import load_model

    models = [load_model(path) for path in model]
    if_not_empty: IfNotEmpty = "overwrite" if overwrite else "continue" if go_on else "refuse"
    places = {output: None if only is None else _names(only, models)}
    if subsets:
        places, cohort = _subset_folders(output, models, cohort)
    rows: list[CaseRow] = []
    for place, allowed in places.items():
        predictor = Predictor(
            models,
            device=device,
            precision=precision,  # type: ignore[arg-type]
            mirror=None if mirror is None else (0,) if mirror else (),
            overlap=overlap,
            labels=labels,
            only=allowed,
            passes=passes,
            ensemble=ensemble,
            seed=seed,
            uncertainty=uncertainty,
        )
        with OutputFolder(place, if_not_empty, probabilities=save_probabilities).opened() as folder:
            done = _predict(predictor, cohort, folder)
        _summary(done, place)
        rows += done
    raise typer.Exit(exit_code(rows))


def _predict(predictor: Predictor, cohort: Cohort, folder: OutputFolder) -> list[CaseRow]:
    """Predict a cohort into a folder, showing how far it is."""
    from modistill.inference.cohort import predict_cohort

    total = len({case.id for case in cohort.cases} | {fault.case for fault in cohort.faults if fault.severity == "error"})
    rows = []
    with _Display(total) as display:
        display.told(str(fault) for fault in cohort.faults if fault.severity != "error" or fault.case is None)
        for row in predict_cohort(predictor, cohort.cases, folder, faults=cohort.faults, progress=display.at):
            display.finished(row)
            rows.append(row)
    return rows


def _names(text: str, models: Sequence[Model]) -> tuple[str, ...]:
    """The modalities of `--only`, by the names the models use.

    Raises:
        RecipeError: none, or one that no model reads.
    """
    from modistill.data.naming import modality_name

    known = {name for model in models for name in model.reads}
    names = tuple(modality_name(word.strip()) for word in text.split(","))
    if foreign := [name for name in names if name not in known]:
        raise RecipeError(f"--only {text}: no model reads {', '.join(foreign)}", remedy=f"they read {', '.join(sorted(known))}")
    return names


def _subset_folders(output: Path, models: Sequence[Model], cohort: Cohort) -> tuple[dict[Path, tuple[str, ...] | None], Cohort]:
    """One folder for each subset of what the models of any subset read, and the cases that have it all.

    Raises:
        RecipeError: no model serves every subset.
        CaseError: no case has all of them.
    """
    from dataclasses import replace

    from modistill.subsets import all_subsets

    serving = [model for model in models if model.any_subset]
    if not serving:
        demands = "; ".join(f"{model.name} {model.demand()}" for model in models)
        raise RecipeError("no model serves every subset", remedy=f"train a method that does ({demands})")
    names = max((model.reads for model in serving), key=len)
    complete = tuple(case for case in cohort.cases if set(names) <= set(case.modalities))
    if not complete:
        raise CaseError(f"no case has all of {', '.join(names)}", remedy="subsets are compared on complete cases")
    if left_out := len(cohort.cases) - len(complete):
        print(f"notice: {left_out} cases lack one of {', '.join(names)} and are left out", file=sys.stderr)
    places = {output / "+".join(subset): subset for subset in all_subsets(names)}
    return dict(places), replace(cohort, cases=complete)


def _cohort(path: Path | None, files: Sequence[str], words: Sequence[str]) -> Cohort:
    """The cases that are meant: those under a path, or the one made of single files."""
    from modistill.cli.inspect import words as declared
    from modistill.data.folder import Cohort, case_from_files, find_cases

    if (path is None) == (not files):
        raise RecipeError("nothing to predict" if path is None else "--input and --file exclude each other", remedy="give one")
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


def _require_apart(path: Path | None, output: Path) -> None:
    """Refuse to write among the patients: the next run would take the label maps for cases."""
    if path is not None and path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise FileError("lies inside the input folder", file=output, remedy="choose a folder beside it")


class _Display:
    """A bar with an ETA on a terminal, a line a case elsewhere; what failed is said at once, in either."""

    def __init__(self, total: int) -> None:
        from rich.console import Console

        from modistill.cli.progress import bar

        self.total, self.done = total, 0
        self.console = Console(stderr=True, highlight=False)
        self.progress = bar(self.console) if self.console.is_terminal else None
        self.task: Any = None

    def __enter__(self) -> _Display:
        if self.progress is not None:
            self.progress.start()
            self.task = self.progress.add_task("predict", total=self.total, note="")
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


def _summary(rows: Sequence[CaseRow], output: Path) -> None:
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
