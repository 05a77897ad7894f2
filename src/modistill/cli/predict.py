"""`modistill predict`: label maps for patients, whatever sequences they have."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modistill.errors import CaseError, RecipeError

if TYPE_CHECKING:
    from modistill.data.cohort import Cohort
    from modistill.inference.cohort import CaseRow
    from modistill.inference.model import Model
    from modistill.inference.outputs import IfNotEmpty, OutputFolder
    from modistill.inference.predictor import Predictor

__all__ = ["command"]


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
    from modistill.cli.cohorts import cases_meant, print_rows, require_apart

    cohort = cases_meant(input, file or [], modality or [], task="predict")
    require_apart(input, output)
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
        print_rows(done, place)
        rows += done
    raise typer.Exit(exit_code(rows))


def _predict(predictor: Predictor, cohort: Cohort, folder: OutputFolder) -> list[CaseRow]:
    """Predict a cohort into a folder, showing how far it is."""
    from modistill.cli.cohorts import watched
    from modistill.inference.cohort import predict_cohort

    return watched(
        "predict",
        cohort,
        lambda progress: predict_cohort(predictor, cohort.cases, folder, faults=cohort.faults, progress=progress),
    )


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
