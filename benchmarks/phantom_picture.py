"""Pictures of phantoms, and what separates a lung tumour from what lies around it.

A brain beside a real patient, as axial, coronal and sagittal slices of four sequences and the labels; chests and abdomens, a
row a patient, as an axial slice of each image and the labels. `--contrast` prints the table of docs/data.md instead.

    python benchmarks/phantom_picture.py -o docs/images/phantom.png --real ../shared/data/brats2021/BraTS2021_00006
    python benchmarks/phantom_picture.py -o docs/images/phantom_chest.png --body chest --case 3 8 6 10
    python benchmarks/phantom_picture.py -o docs/images/phantom_abdomen.png --body abdomen --case 0 2 3 5
    python benchmarks/phantom_picture.py --body chest --contrast 10
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modistill.data.case import Case
from modistill.phantom.patient import BODIES, phantom_case

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


WINDOWS = {"ct": (-160.0, 240.0)}  # HU; MR from 0 to its brightest
SHAPES = {"brain": (240, 240, 155), "chest": (256, 192, 48), "abdomen": (256, 192, 48)}
ORGANS = [BLANK, (0.9, 0.35, 0.2, 0.6), (0.3, 0.75, 0.35, 0.6), (0.25, 0.55, 0.95, 0.6), (0.95, 0.8, 0.2, 0.6)]


def draw_trunks(cases: Sequence[Case], path: Path) -> None:
    """Write one row a case: the axial slice with most labels of each image, then the labels; the patient's right is left."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = matplotlib.colors.ListedColormap(ORGANS)
    names = list(cases[0].images)
    _, high, _ = cases[0].grid.shape
    wide = cases[0].grid.shape[0] / high
    size = (3.1 * wide * (len(names) + 1), 3.1 * len(cases))
    figure, axes = plt.subplots(len(cases), len(names) + 1, figsize=size, facecolor="black", squeeze=False)
    for number, case in enumerate(cases):
        labels = case.labels.voxels
        kinds = np.array([len(np.unique(labels[:, :, k])) for k in range(labels.shape[2])])
        level = int(np.argmax(kinds * 1e6 + np.count_nonzero(labels, axis=(0, 1))))
        for place, name in zip(axes[number], [*names, "labels"], strict=True):
            image = case.images[names[0] if name == "labels" else name].voxels
            window = WINDOWS.get(names[0] if name == "labels" else name, (0.0, float(np.percentile(image, 99))))
            place.imshow(image[::-1, :, level].T, cmap="gray", vmin=window[0], vmax=window[1], origin="lower")
            if name == "labels":
                over = labels[::-1, :, level].T
                place.imshow(over, cmap=colours, vmin=0, vmax=4, origin="lower", interpolation="nearest")
            place.axis("off")
            if number == 0:
                place.text(0.02, 0.93, name, color="white", fontsize=12, transform=place.transAxes)
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.01, hspace=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=62, facecolor="black")


SOFT = ("muscle", "heart", "blood", "gut", "liver", "spleen", "collapse", "disc", "cord")


def contrast(count: int, seed: int, shape: tuple[int, int, int]) -> None:
    """Print, over phantoms with soft tissue near the tumour: area under the ROC curve, and tumour over muscle in MR."""
    from scipy.ndimage import distance_transform_edt
    from scipy.stats import rankdata

    from modistill.phantom.trunk_patient import chest_patient

    rows: dict[tuple[str, str], list[float]] = {}
    ratios: list[float] = []
    index = 0
    while len(ratios) < count:
        patient = chest_patient(index, seed=seed, shape=shape)
        index += 1
        case, shares = patient.case, patient.shares
        tumour = shares["tumour"] + shares["necrosis"] > 0.9
        near = distance_transform_edt(case.labels.voxels == 0, sampling=case.grid.spacing_mm) <= 15
        soft = np.sum([shares[name] for name in SOFT], axis=0)
        around = {"soft tissue": soft > 0.9, "soft tissue and fat": soft + shares["fat"] > 0.9}
        if tumour.sum() < 20 or (around["soft tissue"] & near).sum() < 20:
            continue
        for modality, volume in case.images.items():
            for name, mask in around.items():
                groups = [volume.voxels[tumour], volume.voxels[mask & near & (case.labels.voxels == 0)]]
                n, m = map(len, groups)
                area = (rankdata(np.concatenate(groups))[:n].sum() - n * (n + 1) / 2) / (n * m)
                rows.setdefault((modality, name), []).append(float(area))
        image = case.images["mr"].voxels
        ratios.append(float(np.median(image[tumour]) / np.median(image[shares["muscle"] > 0.95])))
    print(f"{count} of {index} phantoms, {'x'.join(map(str, shape))}, seed {seed}")
    for (modality, name), areas in rows.items():
        either = np.maximum(areas, 1 - np.array(areas))
        shown = f"{np.mean(areas):.2f} ± {np.std(areas, ddof=1):.2f}"
        print(f"{modality}  tumour against {name:20} AUC {shown}; whichever is brighter {either.mean():.2f}")
    print(f"mr  tumour over muscle {np.mean(ratios):.2f} ± {np.std(ratios, ddof=1):.2f}")


def _box(brain: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(brain))


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("phantom.png"))
    parser.add_argument("--body", choices=list(BODIES), default="brain")
    parser.add_argument("--case", type=int, nargs="+", default=[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", type=int, nargs=3)
    parser.add_argument("--real", type=Path, help="folder of one real patient, shown beside a brain")
    parser.add_argument("--contrast", type=int, metavar="N", help="measure N chests instead")
    options = parser.parse_args()
    if options.contrast:
        contrast(options.contrast, options.seed, tuple(options.shape or BODIES["chest"].shape))
        return
    shape = tuple(options.shape or SHAPES[options.body])
    made = [phantom_case(index, seed=options.seed, shape=shape, body=options.body) for index in options.case]
    if options.body != "brain":
        draw_trunks(made, options.out)
        return
    cases = [("phantom (synthetic)", made[0])]
    if options.real:
        from modistill.data.folder import find_cases

        cases.append(("real patient (BraTS 2021)", find_cases(options.real).cases[0].read()))
    draw(cases, options.out)


if __name__ == "__main__":
    main()
