"""`modistill raters`: how several raters agree, and an algorithm with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    raters: Annotated[list[Path], typer.Argument(help="Folders of label maps, CASE.nii.gz each, one a rater.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="CSV file of the scores; the table goes into a .json beside it.")
    ],
    algorithm: Annotated[
        Path | None, typer.Option("--algorithm", help="Folder of an algorithm's label maps.", show_default="none")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="Label convention, to compare region by region.", show_default="one region, all but 0"),
    ] = None,
) -> None:
    """Compare the contours of several raters: Dice and HD95 against the others, and their coefficients of variation."""
    from modistill.cli.progress import bar
    from modistill.cli.tables import print_notes, print_table
    from modistill.evaluation.raters import compare_raters, raters_csv, raters_json, raters_notes, raters_tables
    from modistill.evaluation.scores import require_csv
    from modistill.files import require_writable, write_json, write_text

    require_csv(output)
    require_writable(output)
    with bar() as progress:
        task = progress.add_task("comparing", total=0, note="", visible=False)
        found = compare_raters(
            raters,
            algorithm,
            labels=labels,
            on_case=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
        )
    write_text(output, raters_csv(found))
    write_json(output.with_suffix(".json"), raters_json(found))
    for table in raters_tables(found):
        print_table(table)
    print_notes([*raters_notes(found), f"rows: {output}"])
