"""`modistill phantom`: write a cohort of synthetic patients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; finished patients in it are kept.")],
    cases: Annotated[int, typer.Option(help="Number of patients.")] = 24,
    body: Annotated[
        str, typer.Option(help="brain (t1 t1ce t2 flair), chest (ct mr, lung tumours) or abdomen (t1 t2, organs).")
    ] = "brain",
    shape: Annotated[
        tuple[int, int, int] | None,
        typer.Option(
            help="Voxels left-right, back-front, down-up. A brain of 240 240 155 has 1 mm, as BraTS.",
            show_default="96 96 80 for a brain, else 96 96 32",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first patient: a test cohort starts where training ended.")] = 0,
    without: Annotated[list[str] | None, typer.Option(help="Not written (repeatable): t1ce; mr for a CT cohort.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes as many as there are processors.")] = 0,
) -> None:
    """Write synthetic patients with brain or lung tumours, or abdomens: something to run everything on, without any data."""
    import os

    from modistill.cli.progress import bar
    from modistill.data.naming import modality_name
    from modistill.phantom.cohort import write_cohort
    from modistill.phantom.patient import check_request, named_body

    chosen = named_body(body)
    shape = shape or chosen.shape
    check_request(first, seed, shape, body)
    with bar() as progress:
        task = progress.add_task("phantoms", total=cases, note="")
        folders = write_cohort(
            out,
            cases,
            body=body,
            seed=seed,
            shape=shape,
            first=first,
            without=[modality_name(name) for name in without or ()],
            workers=workers or len(os.sched_getaffinity(0)),
            progress=lambda case: progress.update(task, advance=1, note=case),
        )
    size = "x".join(map(str, shape))
    edges = [f"{edge:.2f}" for edge in chosen.spacing_mm(shape)]
    voxel = edges[0] if len(set(edges)) == 1 else "x".join(edges)
    print(f"{len(folders)} synthetic patients of {size} voxels, {voxel} mm, in {out}")
