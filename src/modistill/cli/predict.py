"""`modistill predict`: label maps for patients, whatever sequences they have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modistill.errors import CaseError, RecipeError

if TYPE_CHECKING:
    from modistill.data.cohort import Cohort
    from modistill.inference.cohort import CaseRow
    from modistill.inference.completion import Completion
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
    one_missing: Annotated[
        bool,
        typer.Option("--one-missing", help="Once without each of the model's sequences, into folders like OUTPUT/flair+t1+t2."),
    ] = False,
    complete_with: Annotated[
        list[str] | None,
        typer.Option(
            "--complete-with",
            help="Where no model can do with what a case has: run folder of a translation that makes the rest, may be repeated,"
            " RUN:t1,flair to make it from the first of these; or zero, or mean (of the others, inside the brain), which fill"
            " the channels of what is missing.",
        ),
    ] = None,
    passes: Annotated[
        int, typer.Option("--mc-dropout", min=0, help="Average over so many passes with dropout; the papers use 100.")
    ] = 0,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Average over all models that read the same, instead of choosing one.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the dropout passes, and of what a translation draws.")] = 0,
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
    A model that reads real sequences alone goes before one that needs synthetic ones.
    A bad case is reported and the others go on. Exit code: 0 all done, 3 some failed, 2 none could be done.
    """
    from modistill.cli.cohorts import cases_meant, print_rows, require_apart

    cohort = cases_meant(input, file or [], modality or [], task="predict")
    require_apart(input, output)
    if overwrite and go_on:
        raise RecipeError("--overwrite and --continue exclude each other")
    chosen = [name for name, given in (("--subsets", subsets), ("--one-missing", one_missing), ("--only", only)) if given]
    if len(chosen) > 1:
        raise RecipeError(f"{' and '.join(chosen)} exclude each other")
    if precision not in ("auto", "32", "bf16-mixed"):
        raise RecipeError(f"no precision {precision!r}", remedy="auto or 32 or bf16-mixed")

    from modistill.inference.cohort import exit_code
    from modistill.inference.outputs import OutputFolder
    from modistill.inference.predictor import Predictor
    from modistill.inference.translator import warning
    from modistill.runs import load_model

    models = [load_model(path) for path in model]
    if_not_empty: IfNotEmpty = "overwrite" if overwrite else "continue" if go_on else "refuse"
    completion = _completion(complete_with, models, device=device, seed=seed)

    def predictor_of(allowed: tuple[str, ...] | None) -> Predictor:
        return Predictor(
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
            completion=completion,
        )

    if subsets or one_missing:
        places, cohort = _subset_folders(output, predictor_of, models, completion, cohort, one_missing=one_missing)
    else:
        places = {output: predictor_of(None if only is None else _names(only, models, completion))}
    rows: list[CaseRow] = []
    for place, predictor in places.items():
        with OutputFolder(place, if_not_empty, probabilities=save_probabilities).opened() as folder:
            done = _predict(predictor, cohort, folder)
        print_rows(done, place)
        rows += done
    made = {one.modality for row in rows for one in row.substitutes if not one.is_fill}
    if synthetic := made.union(*(row.synthetic_inputs for row in rows)):
        print(warning(*synthetic))
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


def _completion(wishes: Sequence[str] | None, models: Sequence[Model], *, device: str, seed: int) -> Completion | None:
    """What `--complete-with` asks for.

    Raises:
        RecipeError: zero or mean beside anything else, or nothing that a model needs.
        ModelError: a run that is no translation.
    """
    from modistill.inference.completion import FILLS, Fill, Translated
    from modistill.runs import load_model

    if not wishes:
        return None
    if fills := [wish for wish in wishes if wish in FILLS]:
        if others := set(wishes) - {fills[0]}:
            raise RecipeError(
                f"--complete-with {fills[0]} fills whatever is missing", remedy=f"leave out {', '.join(sorted(others))}"
            )
        return Fill(fills[0], models)
    runs, sources = [], {}
    for wish in wishes:
        place, chosen = _run_and_sources(wish)
        runs.append(load_model(place))
        if chosen:
            sources[runs[-1].name] = chosen
    return Translated(runs, models, sources, device=device, seed=seed)


def _run_and_sources(wish: str) -> tuple[Path, tuple[str, ...]]:
    """A run, and what it is to make images from: of `runs/utad:t1,flair` T1 and FLAIR; none of a folder's own name."""
    from modistill.data.naming import modality_names

    run, colon, names = wish.rpartition(":")
    return (Path(run), modality_names(names)) if colon and run and not Path(wish).exists() else (Path(wish), ())


def _names(text: str, models: Sequence[Model], completion: Completion | None) -> tuple[str, ...]:
    """The modalities of `--only`, by the names the models use.

    Raises:
        RecipeError: none, or one that no model reads.
    """
    from modistill.data.naming import modality_names

    known = {name for model in models for name in model.reads} | set(completion.sources if completion else ())
    names = modality_names(text)
    if not names:
        raise RecipeError("--only names no sequence", remedy=f"the models read {', '.join(sorted(known))}")
    if foreign := [name for name in names if name not in known]:
        raise RecipeError(f"--only {text}: no model reads {', '.join(foreign)}", remedy=f"they read {', '.join(sorted(known))}")
    return names


def _subset_folders(
    output: Path,
    predictor_of: Callable[[tuple[str, ...]], Predictor],
    models: Sequence[Model],
    completion: Completion | None,
    cohort: Cohort,
    *,
    one_missing: bool,
) -> tuple[dict[Path, Predictor], Cohort]:
    """One folder for each subset of what a model reads, or of all but one, and the cases that have it all.

    That model is the one that reads most of those which need not have it all: models of any subset, or any that is completed.

    Raises:
        RecipeError: there is no such model, or no subset can be served.
        CaseError: no case has all of them.
    """
    from dataclasses import replace

    from modistill.subsets import all_subsets

    serving = [model for model in models if model.any_subset or completion is not None]
    if not serving:
        demands = "; ".join(f"{model.name} {model.demand()}" for model in models)
        if one_missing:
            raise RecipeError("no model can do without one of its sequences", remedy=f"give --complete-with; {demands}")
        raise RecipeError("no model serves every subset", remedy=f"train a method that does ({demands})")
    names = max((model.reads for model in serving), key=len)
    complete = tuple(case for case in cohort.cases if set(names) <= set(case.modalities))
    if not complete:
        raise CaseError(f"no case has all of {', '.join(names)}", remedy="subsets are compared on complete cases")
    if left_out := len(cohort.cases) - len(complete):
        print(f"notice: {left_out} cases lack one of {', '.join(names)} and are left out", file=sys.stderr)
    places: dict[Path, Predictor] = {}
    for subset in all_subsets(names):
        if one_missing and len(subset) != len(names) - 1:
            continue
        predictor = predictor_of(subset)
        try:
            predictor.choose(subset)
        except CaseError as error:
            print(f"notice: {'+'.join(subset)} is left out: {error}", file=sys.stderr)
        else:
            places[output / "+".join(subset)] = predictor
    if not places:
        raise RecipeError(f"nothing can be left out of {', '.join(names)}", remedy="complete with a translation that makes one")
    return places, replace(cohort, cases=complete)
