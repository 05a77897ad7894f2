"""Scores of the uncertainty that a prediction came with, case by case and region by region.

`modistill predict --uncertainty` writes `uncertainty/CASE/REGION.nii.gz` (0 to 100) and the brain mask beside the label maps.
The QU-BraTS score is never given without that of a map that is 0 everywhere: by its formula the trivial map can win.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.data.nifti import read_volume
from modistill.data.volume import Volume, require_same_grid
from modistill.errors import FileError
from modistill.files import read_json
from modistill.metrics.calibration import reliability
from modistill.metrics.uncertainty import qu_brats, trivial_score

__all__ = ["WORST", "score_uncertainty", "uncertainty_scale"]

WORST: Mapping[str, float] = {  # what a case without a usable prediction counts
    "qu_score": 0.0,
    "qu_trivial": 2 / 3,
    "qu_dice_auc": 0.0,
    "qu_ftp_auc": 1.0,
    "qu_ftn_auc": 1.0,
    **{f"qu_{name}_{at}": float(name != "dice") for at in (75, 50, 25) for name in ("dice", "ftp", "ftn")},
}


def uncertainty_scale(predictions: Path) -> str:
    """What counts 100 in the uncertainty maps of a folder of predictions; "" where it has none.

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


def score_uncertainty(
    folder: Path, prediction: Volume, reference: Volume, regions: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
) -> dict[str, dict[str, float]]:
    """The metrics of uncertainty of one case.

    Args:
        folder: of predictions with `uncertainty/CASE` inside, this case's.
        prediction: label map, for its grid.
        reference: label map on the same grid.
        regions: name -> binary maps (D, H, W) of prediction and reference.

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
        curves = qu_brats(predicted, true, values, brain)
        at = {threshold: curves.filtered(threshold) for threshold in (75, 50, 25)}
        found[region] = {
            "qu_score": curves.score,
            "qu_trivial": trivial_score(predicted, true),
            "qu_dice_auc": curves.dice_auc,
            "qu_ftp_auc": curves.ftp_auc,
            "qu_ftn_auc": curves.ftn_auc,
            **{f"qu_{name}_{t}": getattr(one, name) for t, one in at.items() for name in ("dice", "ftp", "ftn")},
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
