"""CT and MR of different patients, from NIfTI to masks on the grid of each CT: CMEDL, and the same student without a teacher.

    python examples/sts_ct_mr.py DATA OUTPUT [--epochs 30]

DATA holds a folder for each patient with soft-tissue sarcoma (the TCIA collection Soft-tissue-Sarcoma,
https://doi.org/10.7937/K9/TCIA.2015.7GO2GSKS) with `CT_image`, `CT_mask`, `MR_T1_image` and `MR_T1_mask.nii.gz`, the tumour of
its RTSTRUCT drawn on both grids. Every patient there has both scans; here the first of each three gives the CT only, the second
the MR only, and the third is segmented from the CT alone, so no pair is ever seen. The networks are small and the training
short: about 10 minutes of two busy cores for the way from files to a picture, not for a result. Of what three tumours in CT
teach, little carries over: in two test patients the Dice of `ct_only` was 0.00 and 0.27, that of `cmedl` 0.14 and 0.04.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modistill.data.folder import find_cases
from modistill.report.figures import INK, SOFT_TISSUE_HU, CaseView, draw_image, in_plane, save_figure, view_case

RUNS: Mapping[str, list[str]] = {"ct_only": [], "cmedl": ["--set", "method.translation.width=8"]}
REFERENCE, FOUND = "#E8B800", "#56B4E9"


def parts(patients: Sequence[Path]) -> dict[str, list[tuple[Path, str]]]:
    """Table -> (folder of a patient, the modality that is taken from it)."""
    train = [(folder, "ct") for folder in patients[0::3]] + [(folder, "mr") for folder in patients[1::3]]
    return {"train": train, "test": [(folder, "ct") for folder in patients[2::3]]}


def write_table(path: Path, rows: Sequence[tuple[Path, str]]) -> None:
    """The table of files that `modistill` reads; both label maps are 0 and 1, which convention `chest` calls tumour."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["case", "ct", "mr", "labels", "convention"])
        table.writeheader()
        for folder, modality in rows:
            stem = {"ct": "CT", "mr": "MR_T1"}[modality]
            files = {modality: folder / f"{stem}_image.nii.gz", "labels": folder / f"{stem}_mask.nii.gz"}
            table.writerow({"case": f"{folder.name}_{modality}", "convention": "chest", **files})


def commands(output: Path, epochs: int) -> Iterator[list[str]]:
    """The words after `modistill`, one command after the other. Each may be run again."""
    train, test, prepared = (str(output / name) for name in ("train.csv", "test.csv", "prepared"))
    low, high = SOFT_TISSUE_HU
    data = ["--normalisation", f"ct={low}:{high},mr=landmarks", "--n4", "mr", "--fractions", "1", "0", "0"]
    small = {
        "data.normalisation": f"{{ct: [{low}, {high}], mr: landmarks}}",
        "data.n4": ["mr"],
        "training.epochs": epochs,
        "sampling.patch_size": [96, 96],
        "method.width": 12,
    }
    settings = [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    yield ["inspect", train]
    yield ["prepare", train, "-o", prepared, "--recipe", "chest/cmedl", *data]
    for run, own in RUNS.items():
        resume = ["--resume"] if (output / "runs" / run / "checkpoints" / "index.json").exists() else []
        yield ["train", f"chest/{run}", "--data", prepared, "-o", str(output / "runs" / run), *settings, *own, *resume]
    for run in RUNS:
        found = str(output / "predictions" / run)
        yield ["predict", "-i", test, "-o", found, "--model", str(output / "runs" / run), "--overwrite"]
        yield ["evaluate", found, "--reference", test, "--run", run, "-o", str(output / "scores" / f"{run}.csv")]
    yield ["compare", *(str(output / "scores" / f"{run}.csv") for run in RUNS), "--control", "ct_only"]


def draw(test: Path, predictions: Mapping[str, Path], out: Path) -> None:
    """Each test patient in the slice with most tumour: the reference in yellow, what a model found in blue."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    views = [
        view_case(case, {run: folder / f"{case.id}.nii.gz" for run, folder in predictions.items()})
        for case in find_cases(test).cases
    ]
    figure = Figure(figsize=(2.6 * (1 + len(predictions)), 2.6 * len(views) + 0.3), dpi=150, layout="constrained")
    panels = figure.subplots(len(views), 1 + len(predictions), squeeze=False)
    for row, view in zip(panels, views, strict=True):
        for panel, run in zip(row, ("", *predictions), strict=True):
            draw_image(panel, view)
            if run:
                _contour(panel, view, view.predictions[run], FOUND)
                dice = ", ".join(f"{value:.2f}" for value in view.scores(run).values())
                panel.set_xlabel(f"Dice of the volume {dice}", fontsize=8, color=INK)
            else:
                panel.set_xlabel(f"CT, slice {view.slice}", fontsize=8, color=INK)
            _contour(panel, view, view.reference, REFERENCE)
        row[0].set_ylabel(view.case, fontsize=8, color=INK)
    for panel, run in zip(panels[0], ("reference", *predictions), strict=True):
        panel.set_title(run, fontsize=9, color=INK)
    lines = [Line2D([], [], color=colour) for colour in (REFERENCE, FOUND)]
    figure.legend(lines, ["reference", "prediction"], loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    save_figure(figure, out)


def _contour(panel: Any, view: CaseView, labels: np.ndarray, colour: str) -> None:
    mask = in_plane(view, labels) > 0
    if mask.any():
        panel.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.2)


def main() -> None:
    """Write the two tables, run the commands, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of patients")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()
    patients = sorted(mask.parent.resolve() for mask in arguments.data.glob("*/CT_mask.nii.gz"))
    if len(patients) < 3:
        parser.error(f"{arguments.data}: {len(patients)} folders with CT_mask.nii.gz, at least 3 are needed")
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in parts(patients).items():
        write_table(output / f"{name}.csv", rows)
    for words in commands(output, arguments.epochs):
        subprocess.run([sys.executable, "-c", "from modistill.cli import main; main()", *words], check=True)
    draw(output / "test.csv", {run: output / "predictions" / run for run in RUNS}, output / "predictions.png")
    print(f"-> {output / 'predictions.png'}")


if __name__ == "__main__":
    main()
