"""`modistill features`: how far a segmentor's last features set tumour and background apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of trained segmentors, one a panel.")],
    input: Annotated[Path, typer.Option("--input", "-i", help="Cases with images and reference labels, in any layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write; the numbers go into a .json beside it.")],
    region: Annotated[
        str | None, typer.Option("--region", help="What counts as tumour.", show_default="the first of the label convention")
    ] = None,
    patch: Annotated[int, typer.Option("--patch", min=2, help="Edge of the patch around a tumour, in voxels.")] = 160,
    voxels: Annotated[
        int, typer.Option("--voxels", min=2, help="At most so many of a case, half of them tumour; the paper has 35000.")
    ] = 400,
    perplexity: Annotated[float, typer.Option("--perplexity", min=1, help="Of t-SNE.")] = 60,
    iterations: Annotated[int, typer.Option("--iterations", min=300, help="Of t-SNE, 250 of them with exaggeration.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the voxels, and of t-SNE.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Map the features of the last two scales with t-SNE, a panel a run; every run is asked at the same voxels.

    The map proves nothing, so two numbers stand beside it: the silhouette of tumour against background, and the AUC of a
    linear probe in patients that it was not fitted to. Exit code 3 where cases were at fault: they are named and do not count.
    """
    import sys

    from modistill.cli.progress import bar
    from modistill.cli.tables import print_notes, print_table
    from modistill.data.folder import find_cases
    from modistill.data.splits import patient_of
    from modistill.evaluation.features import embed, require_scikit_learn, separation
    from modistill.evaluation.tables import TextTable
    from modistill.files import require_writable, write_json
    from modistill.inference.features import sample_features
    from modistill.report.features import draw_features
    from modistill.runs import load_model

    require_writable(output)
    require_scikit_learn()
    models = [load_model(run) for run in runs]
    cohort = find_cases(input)
    faults = [str(fault) for fault in cohort.faults if fault.severity == "error"]
    for fault in faults:  # before the work, which they may leave nothing for
        print(f"error: {fault}", file=sys.stderr)
    with bar() as progress:
        task = progress.add_task("features", total=0, note="", visible=False)
        found = sample_features(
            models,
            cohort.cases,
            region=region,
            most=voxels,
            patch=patch,
            seed=seed,
            device=device,
            on_case=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
        )
        mapping = progress.add_task("t-SNE", total=len(models), note="")
        maps, apart = {}, {}
        for run, values in found.values.items():
            progress.update(mapping, note=run)
            apart[run] = separation(values, found.tumour, found.cases, seed=seed)
            maps[run] = embed(values, perplexity=perplexity, iterations=iterations, seed=seed)
            progress.advance(mapping)
    probes = {run: "-" if one.probe_auc is None else f"{one.probe_auc:.3f}" for run, one in apart.items()}
    captions = {run: f"silhouette {one.silhouette:.3f}   linear probe AUC {probes[run]}" for run, one in apart.items()}
    count = len({patient_of(case) for case in found.cases})
    rule = f"{len(found.tumour)} voxels of {count} patients, the same for every run"
    how = f"t-SNE, perplexity {perplexity:g}, {iterations} iterations, seed {seed}"
    draw_features(maps, found.tumour, captions, output, region=found.region, caption=f"{rule}\n{how}")
    rows = [
        (run, str(found.values[run].shape[1]), f"{one.silhouette:.3f}", probes[run], str(one.folds))
        for run, one in apart.items()
    ]
    header = ("run", "features", "silhouette", "linear probe AUC", "folds")
    print_table(TextTable(f"{found.region} against background", header, tuple(rows)))
    notes = [
        f"{rule}; {how}",
        f"voxels: half of them {found.region}, at most {voxels} of a case, from patches of {patch}x{patch} around it",
        "silhouette: of at most 50 principal components of z-scored features",
        "linear probe: logistic regression, mean over folds that share no patient",
    ]
    rest = {"perplexity": perplexity, "iterations": iterations, "seed": seed, "patch": patch, "voxels": voxels}
    numbers = {run: {"silhouette": one.silhouette, "probe_auc": one.probe_auc} for run, one in apart.items()}
    write_json(output.with_suffix(".json"), {"rules": notes, **rest, "region": found.region, "runs": numbers, "faults": faults})
    print_notes([*notes, f"-> {output}"])
    raise typer.Exit(3 if faults else 0)
