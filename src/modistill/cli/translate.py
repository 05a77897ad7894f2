"""`modistill translate`: synthetic images of another modality, by a trained translation."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modistill.errors import CaseError, RecipeError

if TYPE_CHECKING:
    from modistill.data.cohort import Cohort
    from modistill.inference.cohort import CaseRow
    from modistill.inference.outputs import IfNotEmpty, TranslationFolder
    from modistill.inference.translator import Translator

__all__ = ["command"]


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write: CASE/CASE_MODALITY.nii.gz, report.json.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Run folder of a trained translation, such as chest/cyclegan.")],
    to: Annotated[
        str | None, typer.Option("--to", help="Sequence to make.", show_default="the one that the model makes")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Sequence to make it from, or several, of which the first is taken that a case has.",
            show_default="all that the model reads, in its own order",
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Every sequence into every other, into folders like OUTPUT/flair-to-t1ce."),
    ] = False,
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
    with_labels: Annotated[
        bool, typer.Option("--with-labels", help="Show a teacher the tumour in the reference labels: a bound, for comparisons.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Translate again what is there already.")] = False,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Leave cases that are done and still match; do the others.")
    ] = False,
) -> None:
    """Make synthetic images of another modality, on the patients' own grid and on a scale that a file beside each names.

    Of a case one sequence is read; of the one that is made a real image may be there, and is never opened.
    A synthetic image is not evidence: it can show a lesion that is not there, and hide one that is.
    A bad case is reported and the others go on. Exit code: 0 all done, 3 some failed, 2 none could be done.
    """
    from modistill.cli.cohorts import cases_meant, print_rows, require_apart
    from modistill.cli.tables import print_notes
    from modistill.data.naming import modality_name, modality_names

    cohort = cases_meant(input, file or [], modality or [], task="translate")
    require_apart(input, output)
    if overwrite and go_on:
        raise RecipeError("--overwrite and --continue exclude each other")
    if pairs and (to or source):
        raise RecipeError("--pairs makes everything from everything", remedy="leave out --to and --from")

    from modistill.inference.cohort import exit_code
    from modistill.inference.outputs import TranslationFolder
    from modistill.inference.translator import Translator, warning
    from modistill.runs import load_model

    trained = load_model(model)
    wish = (source and modality_names(source)) or None, to and modality_name(to)
    chosen = (pairs and trained.pairs) or [wish]  # a segmentor has no pairs, and is refused
    translators = [
        Translator(trained, target, made_from, device=device, overlap=overlap, seed=seed, with_labels=with_labels)
        for made_from, target in chosen
    ]
    places = _pair_folders(output, translators, cohort) if pairs else {output: (translators[0], cohort)}
    if_not_empty: IfNotEmpty = "overwrite" if overwrite else "continue" if go_on else "refuse"
    rows: list[CaseRow] = []
    for place, (translator, cases) in places.items():
        with TranslationFolder(place, translator.target, if_not_empty).opened() as folder:
            done = _translate(translator, cases, folder)
        print_rows(done, place)
        rows += done
    if any(row.status != "failed" for row in rows):
        print_notes(_scales([translator for translator, _ in places.values()]))
        read = {name for row in rows for name in row.synthetic_inputs}
        print(warning(*(translator.target for translator, _ in places.values()), *read))
    raise typer.Exit(exit_code(rows))


def _translate(translator: Translator, cohort: Cohort, folder: TranslationFolder) -> list[CaseRow]:
    """Translate a cohort into a folder, showing how far it is."""
    from modistill.cli.cohorts import watched
    from modistill.inference.cohort import translate_cohort

    return watched(
        "translate",
        cohort,
        lambda progress: translate_cohort(translator, cohort.cases, folder, faults=cohort.faults, progress=progress),
    )


def _pair_folders(output: Path, translators: Collection[Translator], cohort: Cohort) -> dict[Path, tuple[Translator, Cohort]]:
    """One folder for each translator of one source, and the cases that have it.

    Raises:
        CaseError: no case has any of the sources.
    """
    from dataclasses import replace

    from modistill.evaluation.synthesis import PAIR

    sources = dict.fromkeys(translator.sources[0] for translator in translators)
    having = {name: tuple(case for case in cohort.cases if name in case.modalities) for name in sources}
    if not any(having.values()):
        raise CaseError(f"no case has any of {', '.join(sources)}", remedy="the model reads nothing else")
    for name, cases in having.items():
        if lacking := len(cohort.cases) - len(cases):
            print(f"notice: {lacking} of {len(cohort.cases)} cases lack {name}: nothing is made from it", file=sys.stderr)
    return {
        output / f"{name}{PAIR}{translator.target}": (translator, replace(cohort, cases=having[name]))
        for translator in translators
        for name in translator.sources
        if having[name]
    }


def _scales(translators: Collection[Translator]) -> list[str]:
    """On which scales images were made, a line for each scale."""
    targets: dict[tuple[float, float], set[str]] = {}
    for translator in translators:
        targets.setdefault(translator.scale, set()).add(translator.target)
    return [
        f"scale: {low:g} to {high:g}; the .json beside each image says how real {', '.join(sorted(names))} comes to it"
        for (low, high), names in targets.items()
    ]
