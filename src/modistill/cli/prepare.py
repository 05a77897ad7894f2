"""`modistill prepare`: from raw cases to a cohort that training reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modistill.errors import RecipeError

if TYPE_CHECKING:
    from rich.table import Table

    from modistill.data.cohort import Cohort
    from modistill.data.preparing import Preparation
    from modistill.data.preprocessing import Preprocessing
    from modistill.data.splits import Share

__all__ = ["command"]

PARTS = ("train", "validation", "test")


def command(
    raw: Annotated[Path, typer.Argument(help="Folder of cases, or a .csv/.json table of paths (see `modistill inspect`).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; run again, it goes on.")],
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Take these settings from a recipe's data.")] = None,
    modalities: Annotated[str | None, typer.Option(help="All of training, comma-separated. Default: all found.")] = None,
    available: Annotated[str | None, typer.Option(help="Those a patient will have, comma-separated: t1,t2,flair.")] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(
            help="zscore (default), hadnet, percentiles, landmarks, LOW:HIGH; or each its own: ct=-1000:500,mr=landmarks."
        ),
    ] = None,
    spacing: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Resample to this voxel size in mm. Default: each case's own.")
    ] = None,
    size: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Pad to these voxels (D H W). Default: each case's own.")
    ] = None,
    within: Annotated[
        str | None, typer.Option(help="lungs: only the axial slices that show lung, of cases with ct. Default: all slices.")
    ] = None,
    n4: Annotated[str | None, typer.Option("--n4", help="Take the bias field out of these, comma-separated: mr.")] = None,
    slices: Annotated[
        bool | None,
        typer.Option("--slices/--patches", help="What is read fast later. Default: what the recipe samples, else patches."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Label convention. Default: inferred from the label maps.")] = None,
    split: Annotated[
        Path | None, typer.Option(help="YAML or JSON: for train, validation, test a list of ids, a count or a fraction.")
    ] = None,
    fractions: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Of train, validation, test. Default: 0.7 0.1 0.2.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    modality: Annotated[list[str] | None, typer.Option(help="WORD=NAME: a word in file names and its modality.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 for one a core.")] = 0,
) -> None:
    """Crop, normalise and store every case once, make the split, count the classes.

    Finished cases are kept when it is run again. Exit code: 0 all done, 3 some cases are left out, 2 nothing done.
    """
    from rich.console import Console

    from modistill.cli.inspect import words
    from modistill.cli.progress import bar
    from modistill.data.folder import find_cases
    from modistill.data.normalisation import parse
    from modistill.data.preparing import prepare

    shares = _shares(split, fractions)
    cohort = find_cases(raw, modalities=words(modality or []))
    how = None if normalisation is None else parse(normalisation)
    given: dict[str, Any] = {"modalities": _names(modalities), "available": _names(available), "normalisation": how}
    given |= {"spacing_mm": spacing, "size": size, "within": within, "n4": _names(n4)}
    preprocessing = _preprocessing(cohort, recipe, given, labels)
    with bar() as progress:
        task = progress.add_task("preparing", total=len(cohort.cases), note="")
        done = prepare(
            cohort,
            output,
            preprocessing,
            shares,
            seed=seed,
            workers=workers,
            slices=_samples_slices(recipe) if slices is None else slices,
            progress=lambda case: progress.update(task, advance=1, note=case),
        )
    console = Console(highlight=False)
    console.print(_summary(done))
    for notice in done.notices:
        console.print(f"notice: {notice}", style="cyan", markup=False)
    for fault in done.faults:
        console.print(f"error: {fault}", style="red", markup=False)
    raise typer.Exit(3 if done.faults else 0)


def _names(text: str | None) -> tuple[str, ...] | None:
    """`"t1, T2,flair"` -> the canonical names."""
    from modistill.data.naming import modality_names

    return None if text is None else modality_names(text)


def _samples_slices(recipe: str | None) -> bool:
    """Whether a recipe's samples are axial slices."""
    from modistill.recipe import load_recipe

    return recipe is not None and len(load_recipe(recipe).sampling.patch_size or ()) == 2


def _shares(split: Path | None, fractions: tuple[float, float, float] | None) -> Mapping[str, Share]:
    from modistill.data.preparing import DEFAULT_SHARES
    from modistill.data.splits import load_shares

    if split is not None and fractions is not None:
        raise RecipeError("--split and --fractions exclude each other", remedy="write the fractions into the split file")
    if split is not None:
        shares = load_shares(split)
        if unknown := [part for part in shares if part not in PARTS]:
            raise RecipeError(f"unknown part {unknown[0]!r}", file=split, remedy=f"known: {', '.join(PARTS)}")
        return shares
    return DEFAULT_SHARES if fractions is None else dict(zip(PARTS, fractions, strict=True))


def _preprocessing(cohort: Cohort, recipe: str | None, given: Mapping[str, Any], labels: str | None) -> Preprocessing:
    """What the recipe says, if there is one, then what the options say."""
    from modistill.data.preprocessing import Preprocessing

    settings: dict[str, Any] = {}
    if recipe is not None:
        from modistill.recipe import load_recipe

        settings = load_recipe(recipe).data.model_dump()
        settings["available"] = settings["available"] or settings["modalities"]
    settings.update({name: value for name, value in given.items() if value is not None})
    settings.setdefault("modalities", cohort.modalities)
    if "available" not in settings:
        raise RecipeError(
            "nobody says which modalities a patient will have at test time",
            remedy=f"--available with some of {','.join(settings['modalities'])}, or --recipe",
        )
    if absent := [name for name in settings["modalities"] if name not in cohort.modalities]:
        raise RecipeError(f"no case has {absent[0]}", remedy=f"found: {', '.join(cohort.modalities)}; or declare --modality")
    own = given["normalisation"] if isinstance(given["normalisation"], Mapping) else ()
    for option, named in (("--normalisation", own), ("--n4", settings.get("n4", ()))):
        if foreign := [name for name in named if name not in settings["modalities"]]:
            remedy = f"some of {','.join(settings['modalities'])}"
            raise RecipeError(f"{option} {foreign[0]}: no such modality", remedy=remedy)
    if settings.get("within") and "ct" not in settings["available"]:
        raise RecipeError("--within lungs needs a ct, which no patient will have", remedy="--available with ct")
    return Preprocessing(**settings, convention=labels)


def _summary(done: Preparation) -> Table:
    """Two columns: what, and what came out."""
    from rich.markup import escape
    from rich.table import Table

    from modistill.data.normalisation import spell

    plan, split = done.cohort.plan, done.cohort.split
    chosen = plan.preprocessing
    privileged = [name for name in chosen.modalities if name not in chosen.available]
    counts = [f"{part} {len(ids)}" for part, ids in split.parts.items()]
    weights = [f"{name} {weight:.1f}" for name, weight in zip(plan.classes, plan.class_weights[1:], strict=True)]
    spacing = " x ".join(f"{size:g}" for size in plan.spacing_mm)
    rows = {
        "prepared": str(done.cohort.folder),
        "cases": "   ".join(counts) + (f"   ({done.kept} kept from before)" if done.kept else ""),
        "split": split.digest + ("" if split.seed is None else f", seed {split.seed}"),
        "available": ", ".join(chosen.available),
        "privileged": ", ".join(privileged) or "none",
        "normalised": spell(chosen.normalisation) + (f"; without bias field: {', '.join(chosen.n4)}" if chosen.n4 else ""),
        "grid": f"{'x'.join(map(str, plan.shape))} voxels (median; largest {'x'.join(map(str, plan.largest))}) of {spacing} mm"
        + (f", within {chosen.within}" if chosen.within else ""),
        "labels": f"{plan.convention}; class weights {', '.join(weights)}",
    }
    table = Table.grid(padding=(0, 3))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table
