"""Scores of the uncertainty that a prediction came with, case by case and region by region.

`modistill predict --uncertainty` writes `uncertainty/CASE/REGION.nii.gz` (0 to 100, the largest entropy possible) and the brain
mask beside the label maps. On which scale they are scored is a rule of the protocol.
The QU-BraTS score is never given without that of a map that is 0 everywhere: by its formula the trivial map can win.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modistill.data.nifti import read_volume
from modistill.data.volume import Volume, require_same_grid
from modistill.errors import FileError, ModistillError
from modistill.evaluation.protocol import UncertaintyScale
from modistill.files import read_json
from modistill.metrics.calibration import reliability
from modistill.metrics.uncertainty import Scale, as_percent, qu_brats, rescaled, trivial_score

__all__ = ["WORST", "Bounds", "cohort_bounds", "ranges_in_brain", "scale_to_score", "score_uncertainty", "written_scale"]

Bounds: TypeAlias = Mapping[str, tuple[float, float]]  # region -> two values of its maps as they were written

WORST: Mapping[str, float] = {  # what a case without a usable prediction counts
    "qu_score": 0.0,
    "qu_trivial": 2 / 3,
    "qu_dice_auc": 0.0,
    "qu_ftp_auc": 1.0,
    "qu_ftn_auc": 1.0,
    **{f"qu_{name}_{at}": float(name != "dice") for at in (75, 50, 25) for name in ("dice", "ftp", "ftn")},
    "uncertainty_mean": math.nan,  # neither good nor bad: the case is not ranked
    "ece": 1.0,
}


def written_scale(predictions: Path) -> str:
    """What counts 100 in the uncertainty maps of a folder of predictions, as they were written; "" where it has none.

    Raises:
        FileError: the cases were not all predicted in one way.
    """
    if not (predictions / "uncertainty").is_dir():
        return ""
    ways: dict[str, Path] = {}
    for path in sorted(predictions.glob("*.json")):
        try:
            content = read_json(path)
        except FileError:  # named as a fault of its case when that is scored
            continue
        made_with = content.get("made_with") if isinstance(content, dict) else None
        if isinstance(made_with, dict):
            ways.setdefault(made_with.get("uncertainty") or "", path)
    if len(ways) > 1:
        found = ", ".join(f"{way or 'none'} ({path.name})" for way, path in ways.items())
        raise FileError(f"uncertainty was written in several ways: {found}", file=predictions, remedy="predict all cases alike")
    return next(iter(ways), "theoretical")


def scale_to_score(predictions: Path, asked: UncertaintyScale | Literal[""] = "") -> UncertaintyScale | Literal[""]:
    """The scale to score the maps of a folder on: the one asked for, else as they were written; "" where there are none.

    Raises:
        FileError: there are none and a scale was asked for, or they do not hold the entropy itself (of older versions).
    """
    written = written_scale(predictions)
    if asked and not written:
        raise FileError(f"holds no uncertainty to score on the {asked} scale", file=predictions, remedy="predict --uncertainty")
    if written not in ("", "theoretical"):
        raise FileError(f"uncertainty was written on the {written} scale", file=predictions, remedy="predict with this version")
    return asked or ("theoretical" if written else "")


def ranges_in_brain(folder: Path, regions: Iterable[str]) -> Bounds:
    """Smallest and largest value inside the brain, of those maps of a case that can be read.

    Args:
        folder: `uncertainty/CASE`.
        regions: names of the maps.
    """
    found = {}
    with suppress(ModistillError):  # what cannot be read is named when its case is scored
        brain = read_volume(folder / "brain.nii.gz")
        inside = brain.voxels.astype(np.float32) > 0
        for region in regions:
            with suppress(ModistillError):
                values = as_percent(_read(folder / f"{region}.nii.gz", brain))[inside]
                if values.size:
                    found[region] = float(values.min()), float(values.max())
    return found


def cohort_bounds(cases: Iterable[Bounds]) -> Bounds:
    """What counts 0 and 100 for each region: smallest and largest value of all cases.

    Example:
        >>> cohort_bounds([{"WT": (1.0, 40.0), "ET": (0.0, 0.0)}, {"WT": (2.0, 60.0)}])
        {'WT': (1.0, 60.0), 'ET': (0.0, 1.0)}
    """
    found: dict[str, tuple[float, float]] = {}
    for ranges in cases:
        for region, (low, high) in ranges.items():
            least, most = found.get(region, (low, high))
            found[region] = min(least, low), max(most, high)
    # One value everywhere tells nothing apart: it counts 0.
    return {region: (low, high if high > low else low + 1) for region, (low, high) in found.items()}


def score_uncertainty(
    folder: Path,
    prediction: Volume,
    reference: Volume,
    regions: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    scale: UncertaintyScale | Literal[""],
    bounds: Bounds,
) -> dict[str, dict[str, float]]:
    """The metrics of uncertainty of one case.

    Args:
        folder: of predictions with `uncertainty/CASE` inside, this case's.
        prediction: label map, for its grid.
        reference: label map on the same grid.
        regions: name -> binary maps (D, H, W) of prediction and reference.
        scale: of the protocol.
        bounds: what counts 0 and 100 on the scale of a cohort (`cohort_bounds`); beyond them values are cut off.

    Returns:
        Region -> metric -> value.

    Raises:
        FileError, GeometryError: a map cannot be read, or lies elsewhere.
        LabelError: a map leaves 0 to 100.
    """
    brain = _read(folder / "brain.nii.gz", prediction) > 0
    found = {}
    for region, (predicted, true) in regions.items():
        values = _read(folder / f"{region}.nii.gz", prediction)
        own: Scale = "case" if scale == "case" else bounds.get(region, "theoretical")
        curves = qu_brats(predicted, true, rescaled(values, own), brain)
        at = {threshold: curves.filtered(threshold) for threshold in (75, 50, 25)}
        found[region] = {
            "qu_score": curves.score,
            "qu_trivial": trivial_score(predicted, true),
            "qu_dice_auc": curves.dice_auc,
            "qu_ftp_auc": curves.ftp_auc,
            "qu_ftn_auc": curves.ftn_auc,
            **{f"qu_{name}_{t}": getattr(one, name) for t, one in at.items() for name in ("dice", "ftp", "ftn")},
            # As written, whatever the scale: it ranks cases, and scaling each by itself would undo what sets them apart.
            "uncertainty_mean": float(values[brain].mean()),
        }
        probabilities = folder.parent.parent / "probabilities" / folder.name / f"{region}.nii.gz"
        if probabilities.is_file():
            found[region]["ece"] = reliability(_read(probabilities, prediction)[brain], true[brain]).ece
    return found


def _read(path: Path, like: Volume) -> NDArray[np.float32]:
    volume = read_volume(path)
    require_same_grid(like, volume, reference_name="prediction", other_name=path.name)
    return volume.voxels.astype(np.float32)
