"""How near the phantom is to real patients: contrast per tissue, and how far ET can be told without the post-contrast T1.

    D=../shared/data; python benchmarks/phantom_contrast.py --real $D/brats2021 --table $D/phantom_calibration.json

Prints, for phantom and real patients: medians relative to white matter (and their spread between patients), volumes, and the
area under the ROC curve of ET against NCR and ED voxels from {t1, t2, flair}: one sequence at a time within each patient; a
quadratic discriminant trained on the other patients; and the same with smoothed copies of the images as context.
The phantom is calibrated on the table of contrasts alone; the discriminant is read, never tuned for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from modistill.data.case import Case
from modistill.data.folder import find_cases
from modistill.phantom.patient import phantom_patient

SEQUENCES = ("t1", "t1ce", "t2", "flair")
AVAILABLE = ("t1", "t2", "flair")
LABELS = {"NCR": 1, "ED": 2, "ET": 4}
GROUP = 13  # patients among whom the discriminant is trained and tested: as many as there are real ones
Array = NDArray[Any]


def contrast(case: Case, tissues: Mapping[str, Array]) -> dict[str, dict[str, tuple[float, float]]]:
    """Sequence -> tissue -> (median, robust standard deviation), both relative to the median of tissue `WM`."""
    out: dict[str, dict[str, tuple[float, float]]] = {}
    for name, volume in case.images.items():
        white = np.median(volume.voxels[tissues["WM"]])
        out[name] = {}
        for tissue, mask in tissues.items():
            if mask.sum() >= 20:
                values = volume.voxels[mask] / white
                median = float(np.median(values))
                out[name][tissue] = median, 1.4826 * float(np.median(np.abs(values - median)))
    return out


def phantom_tissues(labels: Array, shares: Mapping[str, Array]) -> dict[str, Array]:
    """Masks of the phantom's own tissues (more than half a voxel; grey matter and CSF as a labelled patient has them)."""
    healthy = labels == 0
    masks = {"CSF": "csf", "GM": "grey", "WM": "white"}
    out = {name: (shares[key] > 0.5) & healthy for name, key in masks.items()}
    return {**out, **{name: labels == value for name, value in LABELS.items()}}


def atlas_tissues(labels: Array, other: Mapping[str, Array]) -> dict[str, Array]:
    """Masks from the tissue map of another patient laid over this one: blunt, as the real table was measured."""
    order = ("csf", "grey", "white")
    stack = np.stack([other[key] for key in order])
    best = np.where(stack.max(axis=0) > 0.4, stack.argmax(axis=0), -1)
    healthy = labels == 0
    return {name: (best == k) & healthy for k, name in enumerate(("CSF", "GM", "WM"))} | {
        name: labels == value for name, value in LABELS.items()
    }


def auc(positive: Array, negative: Array) -> float:
    """Area under the ROC curve: the chance that a value of `positive` exceeds one of `negative`."""
    ranks = rankdata(np.concatenate([positive, negative]))
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


def features(case: Case, scales_mm: Sequence[float]) -> Array:
    """(F, D, H, W): z-scored available sequences, and copies smoothed over each of `scales_mm`."""
    maps = []
    for name in AVAILABLE:
        voxels = case.images[name].voxels
        brain = voxels > 0
        z = np.where(brain, (voxels - voxels[brain].mean()) / voxels[brain].std(), 0).astype(np.float32)
        maps += [z, *(gaussian_filter(z, scale / case.grid.spacing_mm[0]) for scale in scales_mm)]
    return np.stack(maps)


def discriminant(samples: list[tuple[Array, Array]]) -> list[float]:
    """AUC per patient of a quadratic discriminant trained on the others; samples are (features (N, F), is ET (N,))."""
    scores = []
    for left_out, (x, y) in enumerate(samples):
        rest = [sample for i, sample in enumerate(samples) if i != left_out]
        fx, fy = (np.concatenate([sample[k] for sample in rest]) for k in (0, 1))
        logs = []
        for value in (True, False):
            part = fx[fy == value]
            mean, cov = part.mean(axis=0), np.cov(part.T) + 1e-3 * np.eye(part.shape[1])
            centred = x - mean
            logs.append(-0.5 * (np.einsum("ni,ij,nj->n", centred, np.linalg.inv(cov), centred) + np.linalg.slogdet(cov)[1]))
        if 0 < y.sum() < len(y):
            scores.append(auc((logs[0] - logs[1])[y], (logs[0] - logs[1])[~y]))
    return scores


def sample(case: Case, scales_mm: Sequence[float], rng: np.random.Generator) -> tuple[Array, Array]:
    """Up to 1500 ET voxels and as many NCR and ED voxels of a case."""
    labels = case.labels.voxels
    maps = features(case, scales_mm)
    inside, outside = np.argwhere(labels == 4), np.argwhere((labels == 1) | (labels == 2))
    chosen = [places[rng.permutation(len(places))[:1500]] for places in (inside, outside)]
    x = np.concatenate([maps[:, p[:, 0], p[:, 1], p[:, 2]].T for p in chosen])
    return x, np.repeat([True, False], [len(chosen[0]), len(chosen[1])])


def report(title: str, cases: Sequence[Case]) -> None:
    """Print how well ET is told from NCR and ED, single sequences and discriminants."""
    rng = np.random.default_rng(0)
    enhancing = [case for case in cases if (case.labels.voxels == 4).sum() * case.grid.voxel_volume_ml > 1]
    print(f"\n{title}: {len(enhancing)} of {len(cases)} patients with more than 1 ml ET")
    for name, value in LABELS.items():
        volumes = [(case.labels.voxels == value).sum() * case.grid.voxel_volume_ml for case in cases]
        print(f"  {name:4} ml: quartiles", *np.percentile(volumes, [0, 25, 50, 75, 100]).round(1))
    for name in SEQUENCES:
        values = []
        for case in enhancing:
            labels, image = case.labels.voxels, case.images[name].voxels
            values.append(auc(image[labels == 4], image[(labels == 1) | (labels == 2)]))
        far = np.mean(np.abs(np.array(values) - 0.5))
        print(f"  within patients, {name:6} AUC mean {np.mean(values):.2f}  SD {np.std(values):.2f}  |AUC-0.5| {far:.2f}")
    for scales in ((), (2.0, 5.0, 10.0)):
        samples = [sample(case, scales, rng) for case in enhancing]
        groups = [samples[start : start + GROUP] for start in range(0, len(samples) - GROUP + 1, GROUP)] or [samples]
        values = [value for group in groups for value in discriminant(group)]
        what = f"across {GROUP} patients, t1+t2+flair, context {scales} mm"
        print(f"  {what}: AUC mean {np.mean(values):.3f}  SD {np.std(values):.3f}")


def real_cases(folder: Path, step: int) -> Iterator[Case]:
    """Real patients, averaged down by `step` (labels by nearest neighbour) so that voxels compare with the phantom's."""
    from modistill.data.volume import Volume

    for files in find_cases(folder).cases:
        case = files.read()
        affine = case.grid.affine @ np.diag([step, step, step, 1.0])

        def shrink(voxels: Array, order: int, affine: Array = affine) -> Volume:
            if step > 1 and order:
                voxels = gaussian_filter(voxels, step / 2.5)
            return Volume(np.ascontiguousarray(voxels[::step, ::step, ::step]), affine)

        images = {name: shrink(volume.voxels, 1) for name, volume in case.images.items()}
        yield Case(case.id, images, shrink(case.labels.voxels, 0), case.convention)


def table(title: str, rows: Sequence[Mapping[str, Mapping[str, tuple[float, float]]]]) -> None:
    """Print median over patients, spread between patients (SD of logs) and spread within."""
    print(f"\n{title}")
    for name in SEQUENCES:
        line = []
        for tissue in ("CSF", "GM", "NCR", "ED", "ET"):
            found = np.array([row[name][tissue] for row in rows if tissue in row[name]])
            (median, within), between = np.median(found, axis=0), np.std(np.log(found[:, 0]))
            line.append(f"{tissue} {median:.2f} ~{between:.2f} ±{within:.2f}")
        print(f"  {name:6}", "   ".join(line))


def ratios(title: str, rows: Sequence[Mapping[str, Mapping[str, tuple[float, float]]]]) -> None:
    """Print how tumour tissues differ from each other: mean and SD between patients of the log of the ratio of medians."""
    print(f"\n{title}: log ratios, mean ~SD between patients")
    for first, second in (("ET", "ED"), ("ET", "NCR"), ("NCR", "ED")):
        line = []
        for name in SEQUENCES:
            both = [row[name] for row in rows if first in row[name] and second in row[name]]
            logs = [np.log(row[first][0] / row[second][0]) for row in both]
            line.append(f"{name} {np.mean(logs):+.2f} ~{np.std(logs):.2f}")
        print(f"  {first:>3}/{second:3}", "   ".join(line))


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--shape", type=int, nargs=3, default=(74, 92, 78))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    patients = [phantom_patient(i, seed=options.seed, shape=tuple(options.shape)) for i in range(options.cases)]
    own = [contrast(p.case, phantom_tissues(p.case.labels.voxels, p.shares)) for p in patients]
    table("phantom, own tissue map (median ~SD of log between patients ±spread within)", own)
    ratios("phantom", own)
    laid = [contrast(p.case, atlas_tissues(p.case.labels.voxels, patients[i - 1].shares)) for i, p in enumerate(patients)]
    table("phantom, tissue map of another patient", laid)
    if options.table:
        measured = [case["seq"] for case in json.loads(options.table.read_text())["per_case"].values()]
        table("real, 23 patients", measured)
        ratios("real", measured)
    report("phantom", [p.case for p in patients])
    if options.real:
        report("real", list(real_cases(options.real, 2)))


if __name__ == "__main__":
    main()
