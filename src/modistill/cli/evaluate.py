"""`modistill evaluate`: score predicted label maps against reference labels."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from modistill.evaluation.folders import Evaluation

__all__ = ["command", "finish", "scoring"]


def command(
    predictions: Annotated[Path, typer.Argument(help="Folder of predictions, CASE.nii.gz each.")],
    reference: Annotated[
        Path, typer.Option("--reference", "-r", help="Cases with reference labels, in any layout; or a folder of label maps.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file of score rows.", show_default="PREDICTIONS/scores.csv")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Name of the run, ARM or ARM/SEED.", show_default="as in the predictions")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Label convention of the reference.", show_default="found out")
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            "--cases", help="The cases that count: one id a line, or a split.json.", show_default="all with reference"
        ),
    ] = None,
    subsets: Annotated[
        bool, typer.Option("--subsets", help="PREDICTIONS holds a folder for each set of sequences (predict --subsets).")
    ] = False,
    tolerance_mm: Annotated[float, typer.Option("--tolerance-mm", help="Tolerance of the surface Dice.")] = 1.0,
    both_empty: Annotated[
        str, typer.Option("--both-empty", help="A region in neither prediction nor reference: perfect or undefined.")
    ] = "perfect",
    penalty_mm: Annotated[
        float, typer.Option("--penalty-mm", help="HD95 where one of the two is empty; inf is allowed.")
    ] = 373.13,
    hausdorff95: Annotated[str, typer.Option("--hd95", help="directed_max (MONAI, BraTS) or pooled (MedPy).")] = "directed_max",
    dice: Annotated[str, typer.Option("--dice", help="brats: 2I/(P+G); smooth1: (2I+1)/(P+G+1).")] = "brats",
    et_minimum_voxels: Annotated[int, typer.Option("--et-minimum-voxels", help="A smaller predicted ET counts as none.")] = 0,
    uncertainty_scale: Annotated[
        str | None,
        typer.Option(
            "--uncertainty-scale",
            help="What counts 100 in uncertainty maps: theoretical (the largest entropy possible), case (the largest in it) or "
            "cohort (the largest in the brain of all cases; the smallest counts 0).",
            show_default="theoretical",
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", help="Processes.", show_default="as many as CPUs, 8 at most")] = 0,
) -> None:
    """Score predictions: Dice, HD95, surface Dice and volume, for each case and region.

    A case without a usable prediction counts as failed (Dice 0, HD95 the penalty) and is named; the exit code is then 2.
    It is 3 where only references were at fault: those cases are named and have no rows.
    """
    from modistill.cli.tables import print_notes, print_table
    from modistill.evaluation.folders import evaluate_folders, ids_that_count
    from modistill.evaluation.protocol import Protocol
    from modistill.evaluation.scores import require_csv, write_scores
    from modistill.evaluation.subsets import evaluate_subsets
    from modistill.evaluation.tables import subset_table, summary_table, uncertainty_table
    from modistill.files import require_writable

    rules = (both_empty, penalty_mm, hausdorff95, tolerance_mm, dice, et_minimum_voxels, uncertainty_scale or "")
    protocol = Protocol(*rules)  # type: ignore[arg-type]
    place = output or predictions / "scores.csv"
    require_csv(place)
    require_writable(place)
    with scoring() as on_case:
        evaluation = (evaluate_subsets if subsets else evaluate_folders)(
            predictions,
            reference,
            protocol=protocol,
            run_name=run,
            labels=labels,
            cases=None if cases is None else ids_that_count(cases),
            workers=workers or _cpus(),
            on_case=on_case,
        )
    faults = [str(fault) for fault in evaluation.faults]
    note = {"predictions": str(predictions), "reference": str(reference), "faults": faults}
    write_scores(place, evaluation.scores, note=note)
    print_table(subset_table(evaluation.scores) if subsets else summary_table(evaluation.scores))
    if uncertainty := uncertainty_table(evaluation.scores):
        print_table(uncertainty)
    if subsets:
        from modistill.report.figures import plot_subsets

        plot_subsets(evaluation.scores, place.with_suffix(".png"))
    used = evaluation.scores.protocol
    print_notes([f"protocol {used.digest}:", *(f"  {rule}" for rule in used.describe()), f"rows: {place}"])
    finish(evaluation)


@contextlib.contextmanager
def scoring() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; silence in a log, where the table says it all."""
    from modistill.cli.progress import bar

    with bar() as progress:
        task = progress.add_task("scoring", total=0, note="", visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


def _cpus() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def finish(evaluation: Evaluation, what: str = "predictions") -> None:
    """Name what was wrong on stderr and leave with the exit code that says so."""
    if evaluation.unscored:
        names = ", ".join(evaluation.unscored[:8]) + (" ..." if len(evaluation.unscored) > 8 else "")
        print(f"note: {len(evaluation.unscored)} {what} have no reference and are not scored: {names}", file=sys.stderr)
    for fault in evaluation.faults:
        print(f"error: {fault}", file=sys.stderr)
    if evaluation.scores.failed:
        raise typer.Exit(2)
    if evaluation.faults:
        raise typer.Exit(3)
