"""`modistill train`: one recipe, one prepared cohort, one run folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modistill.errors import RecipeError

if TYPE_CHECKING:
    from modistill.recipe import Recipe


def command(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe (see `modistill methods`).")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Folder written by `modistill prepare`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder to write.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, as often as needed.")] = None,
    start_from: Annotated[
        list[str] | None, typer.Option("--start-from", help="network=RUN: weights to start from, instead of the recipe's.")
    ] = None,
    with_controls: Annotated[
        bool,
        typer.Option("--with-controls", help="First train what the recipe's `controls` name, in folders beside OUTPUT."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run folder.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log to RUN/tensorboard.")] = False,
) -> None:
    """Train a method as a recipe says.

    Stops cleanly on Ctrl-C and SIGTERM after the current step; `--resume` goes on as if nothing had happened, bit for bit.
    """
    from modistill.recipe import load_recipe

    chosen = load_recipe(recipe, [*(overrides or ()), *(f"start_from.{pair}" for pair in start_from or ())])
    if with_controls:
        if not chosen.controls:
            raise RecipeError(f"{recipe} names no controls", remedy="controls: {teacher: demo/teacher, control: demo/control}")
        for name, control in chosen.controls.items():
            folder = output.parent / name
            begun = (folder / "checkpoints" / "index.json").exists()
            _train(_control(control, overrides or ()), data, folder, begun, device, tensorboard)
    _train(chosen, data, output, resume, device, tensorboard)


def _control(name: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of a control with those of the overrides that concern it: arguments its method lacks are the other's own."""
    from modistill.arguments import takes
    from modistill.methods import load_method
    from modistill.recipe import load_recipe

    method = load_method(load_recipe(name).method.name)

    def concerns(override: str) -> bool:
        section, _, key = override.partition("=")[0].partition(".")
        return section != "method" or takes(method, key.split(".")[0])

    return load_recipe(name, list(filter(concerns, overrides)))


def _train(recipe: Recipe, data: Path, output: Path, resume: bool, device: str, tensorboard: bool) -> None:
    """Train one run with its progress shown; a finished one that is resumed is left as it is."""
    from modistill.cli.progress import TrainingDisplay
    from modistill.runs import train
    from modistill.training import Interrupted

    try:
        with TrainingDisplay(output.name) as display:
            train(recipe, data, output, resume=resume, device=device, tensorboard=tensorboard, report=display)
    except Interrupted:
        print(f"stopped after a complete step; --resume goes on in {output}", file=sys.stderr)
        raise
    display.finish(output)
