"""A phantom beside a real patient: axial, coronal and sagittal slices of four sequences and the labels.

python benchmarks/phantom_picture.py -o docs/images/phantom.png --real ../shared/data/brats2021/BraTS2021_00006
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modistill.data.case import Case
from modistill.phantom.patient import phantom_case

SEQUENCES = ("t1", "t1ce", "t2", "flair")
PLANES = ("axial", "coronal", "sagittal")
BLANK = (0.0, 0.0, 0.0, 0.0)
COLOURS = [BLANK, (0.85, 0.25, 0.25, 0.85), (0.25, 0.65, 0.35, 0.7), BLANK, (0.95, 0.8, 0.2, 0.95)]  # labels 0 to 4


def draw(cases: Sequence[tuple[str, Case]], path: Path) -> None:
    """Write one row a case and plane: four sequences, then the labels over FLAIR."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = matplotlib.colors.ListedColormap(COLOURS)
    figure, axes = plt.subplots(3, 5 * len(cases), figsize=(2.0 * 5 * len(cases), 6.0), facecolor="black", squeeze=False)
    for block, (title, case) in enumerate(cases):
        labels = case.labels.voxels
        core = np.isin(labels, (1, 4)) if np.isin(labels, (1, 4)).any() else labels > 0
        middle = [int(np.median(places)) for places in np.nonzero(core)]
        box = _box(case.images["t1"].voxels > 0)
        for row, axis in enumerate((2, 1, 0)):
            for column in range(5):
                place = axes[row, 5 * block + column]
                name = SEQUENCES[min(column, 3)]
                image = case.images[name].voxels
                brightest = np.percentile(image[image > 0], 99.5)
                shown = np.take(image[box], middle[axis] - box[axis].start, axis=axis).T
                place.imshow(shown, cmap="gray", vmin=0, vmax=brightest, origin="lower")
                if column == 4:
                    over = np.take(labels[box], middle[axis] - box[axis].start, axis=axis).T
                    place.imshow(over, cmap=colours, vmin=0, vmax=4, origin="lower", interpolation="nearest")
                place.axis("off")
                if row == 0:
                    text = f"{title}\n{name}" if column == 0 else f"\n{'labels' if column == 4 else name}"
                    place.set_title(text, color="white", fontsize=10, loc="left")
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.91, wspace=0.03, hspace=0.03)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75, facecolor="black")


def _box(brain: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(brain))


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--case", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155))
    parser.add_argument("--real", type=Path, help="folder of one real patient, shown beside it")
    options = parser.parse_args()
    cases = [("phantom (synthetic)", phantom_case(options.case, seed=options.seed, shape=tuple(options.shape)))]
    if options.real:
        from modistill.data.folder import find_cases

        cases.append(("real patient (BraTS 2021)", find_cases(options.real).cases[0].read()))
    draw(cases, options.out)


if __name__ == "__main__":
    main()
