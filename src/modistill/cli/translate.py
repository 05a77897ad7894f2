"""`modistill translate`: synthetic images of another modality, by a trained translation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modistill.errors import RecipeError

if TYPE_CHECKING:
    from modistill.inference.outputs import IfNotEmpty

__all__ = ["command"]


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write: CASE/CASE_MODALITY.nii.gz, report.json.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Run folder of a trained translation, such as chest/cyclegan.")],
    input: Annotated[
        Path | None, typer.Option("--input", "-i", help="Case folder, folder of cases in any layout, or a .csv/.json table.")
    ] = None,
    file: Annotated[
        list[str] | None, typer.Option("--file", help="NAME=FILE, the image of a single case, instead of --input.")
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Of neighbouring windows, as a fraction.", show_default="as the model says"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    modality: Annotated[list[str] | None, typer.Option(help="WORD=NAME: a word in file names and its modality.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what a method draws.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Translate again what is there already.")] = False,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Leave cases that are done and still match; do the others.")
    ] = False,
) -> None:
    """Make synthetic images of another modality, on the patients' own grid and on a scale that a file beside each names.

    A synthetic image is not evidence: it can show a lesion that is not there, and hide one that is.
    A bad case is reported and the others go on. Exit code: 0 all done, 3 some failed, 2 none could be done.
    """
    from modistill.cli.cohorts import cases_meant, print_rows, require_apart, watched
    from modistill.cli.tables import print_notes

    cohort = cases_meant(input, file or [], modality or [], task="translate")
    require_apart(input, output)
    if overwrite and go_on:
        raise RecipeError("--overwrite and --continue exclude each other")

    from modistill.inference.cohort import exit_code, translate_cohort
    from modistill.inference.outputs import TranslationFolder
    from modistill.inference.translator import NOT_EVIDENCE, Translator
    from modistill.runs import load_model

    translator = Translator(load_model(model), device=device, overlap=overlap, seed=seed)
    if_not_empty: IfNotEmpty = "overwrite" if overwrite else "continue" if go_on else "refuse"
    with TranslationFolder(output, translator.target, if_not_empty).opened() as folder:
        rows = watched(
            "translate",
            cohort,
            lambda progress: translate_cohort(translator, cohort.cases, folder, faults=cohort.faults, progress=progress),
        )
    print_rows(rows, output)
    low, high = translator.scale
    print_notes([f"scale: {low:g} to {high:g}; the .json beside each image says how real {translator.target} comes to it"])
    print(NOT_EVIDENCE)
    raise typer.Exit(exit_code(rows))
