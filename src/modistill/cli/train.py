"""`modistill train`: one recipe, one prepared cohort, one run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe (see `modistill methods`).")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Folder written by `modistill prepare`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder to write.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, as often as needed.")] = None,
    start_from: Annotated[
        list[str] | None, typer.Option("--start-from", help="network=RUN: weights to start from, instead of the recipe's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run folder.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log to RUN/tensorboard.")] = False,
) -> None:
    """Train a method as a recipe says.

    Stops cleanly on Ctrl-C and SIGTERM after the current step; `--resume` goes on as if nothing had happened, bit for bit.
    """
    from modistill.cli.progress import TrainingDisplay
    from modistill.recipe import load_recipe
    from modistill.runs import train
    from modistill.training import Interrupted

    chosen = load_recipe(recipe, [*(overrides or ()), *(f"start_from.{pair}" for pair in start_from or ())])
    try:
        with TrainingDisplay(output.name) as display:
            train(chosen, data, output, resume=resume, device=device, tensorboard=tensorboard, report=display)
    except Interrupted:
        print(f"stopped after a complete step; --resume goes on in {output}", file=sys.stderr)
        raise
    display.finish(output)
