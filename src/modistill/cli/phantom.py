"""`modistill phantom`: write a cohort of synthetic patients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; finished patients in it are kept.")],
    cases: Annotated[int, typer.Option(help="Number of patients.")] = 24,
    shape: Annotated[
        tuple[int, int, int], typer.Option(help="Voxels left-right, back-front, down-up. 240 240 155 has 1 mm, as BraTS.")
    ] = (96, 96, 80),
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first patient: a test cohort starts where training ended.")] = 0,
    without: Annotated[list[str] | None, typer.Option(help="Sequence that is not written (repeatable): t1ce.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes as many as there are processors.")] = 0,
) -> None:
    """Write synthetic brain tumour patients as BraTS folders: something to run everything on, without any data."""
    import os

    from modistill.cli.progress import bar
    from modistill.data.naming import modality_name
    from modistill.phantom.cohort import write_cohort
    from modistill.phantom.patient import check_request, spacing_mm

    check_request(first, seed, shape)
    with bar() as progress:
        task = progress.add_task("phantoms", total=cases, note="")
        folders = write_cohort(
            out,
            cases,
            seed=seed,
            shape=shape,
            first=first,
            without=[modality_name(name) for name in without or ()],
            workers=workers or len(os.sched_getaffinity(0)),
            progress=lambda case: progress.update(task, advance=1, note=case),
        )
    size = "x".join(map(str, shape))
    print(f"{len(folders)} synthetic patients of {size} voxels, {spacing_mm(shape):.2f} mm, in {out}")
