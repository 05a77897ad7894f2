"""HD95 and surface Dice of three regions, against MONAI's functions called on the whole volume, in one run on one core.

    python benchmarks/surface.py [CASE_labels.nii.gz ...]

Without arguments: a made tumour on 240x240x155 voxels. With label maps in BraTS numbers (1 2 4): those too. The prediction is
the reference moved by a voxel or two, with smooth holes. Both sides get the same binary arrays; the fastest of five calls
counts. Values must agree to 1e-3 mm and 2e-3.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from modistill.data.naming import conventions
from modistill.metrics.surface import surface_distances

SHAPE = (240, 240, 155)
REGIONS = conventions["brats2021"].regions


def tumour(seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    radius = np.sqrt(
        sum(((axis - centre) / size) ** 2 for axis, centre, size in zip(axes, (90, 120, 85), (34, 40, 30), strict=True))
    )
    radius = radius + 0.25 * _smooth(rng, 6)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for value, limit in ((2, 1.0), (4, 0.55), (1, 0.35)):
        labels[radius < limit] = value
    return labels


def _smooth(rng: np.random.Generator, sigma: float) -> NDArray[np.float32]:
    noise = ndimage.gaussian_filter(rng.normal(size=SHAPE).astype(np.float32), sigma)
    return noise / noise.std()


def predicted(labels: NDArray[np.uint8], seed: int = 1) -> NDArray[np.uint8]:
    moved = np.roll(labels, (2, 1, -1), axis=(0, 1, 2))
    moved[_smooth(np.random.default_rng(seed), 2) > 1.6] = 0
    return moved


def fastest(call: Callable[[], Any], repeats: int = 5) -> tuple[float, Any]:
    times, answer = [], None
    for _ in range(repeats):
        begin = time.perf_counter()
        answer = call()
        times.append(time.perf_counter() - begin)
    return min(times), answer


def ours(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> NDArray[np.float64]:
    pairs = [surface_distances(p, r, (1.0, 1.0, 1.0)) for p, r in zip(prediction, reference, strict=True)]
    return np.array([[pair.hausdorff95_mm(), pair.surface_dice(1.0)] for pair in pairs])


def monai(prediction: Any, reference: Any) -> NDArray[np.float64]:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    facts: dict[str, Any] = {"include_background": True, "spacing": (1.0, 1.0, 1.0)}
    hausdorff = compute_hausdorff_distance(prediction, reference, percentile=95, **facts)
    dice = compute_surface_dice(prediction, reference, [1.0] * len(REGIONS), **facts)
    return np.stack([hausdorff[0].numpy(), dice[0].numpy()], axis=1).astype(np.float64)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    volumes = {"made tumour": tumour()}
    for path in map(Path, sys.argv[1:]):
        from modistill.data.nifti import read_labels

        volumes[path.name] = read_labels(path).voxels.astype(np.uint8)
    print(f"{'volume':36} {'WT voxels':>9} {'MONAI s':>8} {'ours s':>7} {'ratio':>6}  largest difference (mm, share)")
    for name, labels in volumes.items():
        prediction, reference = REGIONS.encode(predicted(labels)), REGIONS.encode(labels)
        tensors = [torch.from_numpy(maps[None]) for maps in (prediction, reference)]
        theirs_s, theirs = fastest(lambda tensors=tensors: monai(*tensors))
        ours_s, own = fastest(lambda p=prediction, r=reference: ours(p, r))
        apart = np.abs(own - theirs).max(axis=0)
        differences = f"{apart[0]:.1e} {apart[1]:.1e}"
        print(f"{name:36} {reference[0].sum():9} {theirs_s:8.3f} {ours_s:7.3f} {theirs_s / ours_s:6.1f}  {differences}")
        if apart[0] > 1e-3 or apart[1] > 2e-3:
            sys.exit("values differ")


if __name__ == "__main__":
    main()
