"""`modistill roc`: ROC curves of the probabilities that runs gave."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    predictions: Annotated[list[Path], typer.Argument(help="Folders that `modistill predict --save-probabilities` wrote.")],
    reference: Annotated[
        Path, typer.Option("--reference", "-r", help="Cases with reference labels, in any layout; or a folder of label maps.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file of the curves; areas go into a .json beside it.")],
    figure: Annotated[Path | None, typer.Option("--figure", help="PNG file of the curves.", show_default="none")] = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="Name of a run, once for each folder.", show_default="the folders' names"),
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
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Of each bootstrap interval.")] = 9999,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of each bootstrap interval.")] = 0,
) -> None:
    """Draw ROC curves: of voxels, pooled over the patients, with an interval over patients; and of the detection of tumours.

    Exit code 3 where references were at fault: those cases are named and do not count.
    """
    from modistill.cli.progress import bar
    from modistill.cli.tables import print_notes, print_table
    from modistill.evaluation.folders import ids_that_count
    from modistill.evaluation.roc import roc_csv, roc_json, roc_notes, roc_of_folders, roc_table
    from modistill.evaluation.scores import require_csv
    from modistill.files import require_writable, write_json, write_text
    from modistill.report.roc import draw_roc

    require_csv(output)
    for place in (output, figure):
        if place is not None:
            require_writable(place)
    with bar() as progress:
        task = progress.add_task("counting", total=0, note="", visible=False)
        found = roc_of_folders(
            predictions,
            reference,
            names=run,
            labels=labels,
            cases=None if cases is None else ids_that_count(cases),
            resamples=resamples,
            seed=seed,
            on_case=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
        )
    write_text(output, roc_csv(found))
    write_json(output.with_suffix(".json"), roc_json(found))
    print_table(roc_table(found))
    print_notes([*roc_notes(found), f"curves: {output}"])
    if figure is not None:
        draw_roc(found, figure)
        print_notes([f"figure: {figure}"])
    for fault in found.faults:
        print(f"error: {fault}", file=sys.stderr)
    raise typer.Exit(3 if found.faults else 0)
