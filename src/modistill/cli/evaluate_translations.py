"""`modistill evaluate-translations`: synthetic images against real ones of the same patients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    translated: Annotated[Path, typer.Argument(help="Folder that `modistill translate` wrote, with or without --pairs.")],
    references: Annotated[
        Path, typer.Option("--reference", "-r", help="Cases with real images of the same modality, in any layout.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file of score rows.", show_default="TRANSLATED/scores.csv")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Score translations into this sequence.", show_default="all there are")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Name of the run, ARM or ARM/SEED.", show_default="as in the translations")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Label convention of the references.", show_default="found out")
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            "--cases", help="The cases that count: one id a line, or a split.json.", show_default="all with a real image"
        ),
    ] = None,
    body_above: Annotated[
        float | None,
        typer.Option(
            "--body-above",
            help="Share of the scale above which a voxel of the real image is body.",
            show_default="what lies above Otsu's threshold: its largest component, filled",
        ),
    ] = None,
    dims: Annotated[
        int | None,
        typer.Option("--dims", min=2, max=3, help="Axes of SSIM's windows.", show_default="as the network that translated"),
    ] = None,
) -> None:
    """Score translations: PSNR, SSIM, MAE, NMAE and the divergence of histograms, in the body and in each label region.

    Of a folder with a folder for each pair (translate --pairs) one table is made, which names the pairs.
    A case without a usable translation counts as failed (PSNR 0, SSIM -1) and is named; the exit code is then 2.
    It is 3 where only references were at fault: those cases are named and have no rows.
    """
    from modistill.cli.evaluate import finish, scoring
    from modistill.cli.tables import print_notes, print_table
    from modistill.data.naming import modality_name
    from modistill.evaluation.folders import ids_that_count
    from modistill.evaluation.scores import require_csv, write_scores
    from modistill.evaluation.synthesis import PAIR
    from modistill.evaluation.tables import summary_table
    from modistill.evaluation.translations import evaluate_translations, pair_table
    from modistill.files import require_writable

    place = output or translated / "scores.csv"
    require_csv(place)
    require_writable(place)
    with scoring() as on_case:
        evaluation = evaluate_translations(
            translated,
            references,
            target=to and modality_name(to),
            run_name=run,
            labels=labels,
            cases=None if cases is None else ids_that_count(cases),
            body_above=body_above,
            dims=dims,
            on_case=on_case,
        )
    faults = [str(fault) for fault in evaluation.faults]
    write_scores(place, evaluation.scores, note={"translated": str(translated), "reference": str(references), "faults": faults})
    of_pairs = any(PAIR in name for name in evaluation.scores.subsets)
    print_table((pair_table if of_pairs else summary_table)(evaluation.scores))
    used = evaluation.scores.protocol
    print_notes([f"protocol {used.digest}:", *(f"  {rule}" for rule in used.describe()), f"rows: {place}"])
    finish(evaluation, "translations")
