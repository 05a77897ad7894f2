"""`modistill picture`: what several models found in the same patients, or made of one of them, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    patients: Annotated[Path, typer.Argument(help="Cases with images and, where there are any, reference labels.")],
    predictions: Annotated[
        list[Path], typer.Argument(help="Folders that `modistill predict` wrote, one a column; or one of `translate --pairs`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")],
    cases: Annotated[list[str] | None, typer.Option("--case", help="Show this case; repeat for several.")] = None,
    uncertainty: Annotated[
        str | None, typer.Option("--uncertainty", help="Show what filtering by the uncertainty of this region does, as ET.")
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Show every sequence made of every other, of one case.")] = False,
    count: Annotated[int, typer.Option("--count", min=1, help="How many cases, if none is named.")] = 3,
) -> None:
    """Draw cases in the slice with most tumour: the predictions of several models, or the translations of one."""
    from modistill.errors import RecipeError
    from modistill.files import require_writable
    from modistill.report.figures import draw_predictions

    require_writable(output)
    if pairs and (uncertainty is not None or len(predictions) > 1 or len(cases or ()) > 1):
        raise RecipeError(
            "--pairs shows one folder and one case", remedy="leave out --uncertainty and further folders or cases"
        )
    if pairs:
        from modistill.report.pairs import draw_pairs

        draw_pairs(patients, predictions[0], output, case=cases[0] if cases else None)
    elif uncertainty is None:
        draw_predictions(patients, predictions, output, cases=cases, count=count)
    elif len(predictions) > 1:
        raise RecipeError("--uncertainty shows one folder of predictions", remedy="give one")
    else:
        from modistill.report.uncertainty import draw_uncertainty

        draw_uncertainty(patients, predictions[0], output, region=uncertainty, cases=cases, count=count)
    print(f"-> {output}")
