"""What filtering by uncertainty does to a segmentation: HAD-Net's figure 3, and reliability beside it.

Vadacchino et al., HAD-Net (MIDL 2021), show for one region the hits, misses and false alarms that are left when voxels above an
uncertainty threshold are taken away: with a good map the errors go first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modistill.data.folder import find_cases
from modistill.data.nifti import read_volume
from modistill.errors import CaseError
from modistill.report.figures import INK, PALE, CaseView, draw_image, in_plane, save_figure, view_case

__all__ = ["draw_uncertainty"]

_THRESHOLDS = (100, 75, 50, 25)
_KINDS = {"hit": "#009E73", "false alarm": "#D55E00", "miss": "#E8B800", "left out": "#B4B4B4"}


def draw_uncertainty(
    patients: Path,
    predictions: Path,
    out: Path,
    *,
    region: str = "ET",
    cases: Sequence[str] | None = None,
    count: int = 2,
) -> None:
    """A row for every case: the image, the uncertainty of a region, and what is left of it at thresholds 100, 75, 50, 25.

    Args:
        patients: cases with images and reference labels, in any layout.
        predictions: folder that `modistill predict --uncertainty` wrote.
        out: the PNG file.
        region: whose uncertainty is shown.
        cases: ids to show; None for the first that have what is needed.
        count: how many of those.

    Raises:
        CaseError: a case asked for lacks reference, prediction or map, or none has them.
        FileError, GeometryError, LabelError: a file cannot be used.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    known = {case.id: case for case in find_cases(patients).cases if case.labels is not None}
    there = [case for case in known if (predictions / "uncertainty" / case / f"{region}.nii.gz").is_file()]
    wanted = list(cases) if cases is not None else there[:count]
    if absent := [case for case in wanted if case not in there]:
        raise CaseError(f"lacks reference labels or uncertainty of {region}", case=absent[0], remedy="predict --uncertainty")
    if not wanted:
        raise CaseError(f"no case with uncertainty of {region}", file=predictions, remedy="predict --uncertainty")
    figure = Figure(figsize=(1.7 * (2 + len(_THRESHOLDS)), 1.95 * len(wanted) + 0.5), dpi=150, layout="constrained")
    grid = figure.subplots(len(wanted), 2 + len(_THRESHOLDS), squeeze=False)
    for row, case in zip(grid, wanted, strict=True):
        view = view_case(known[case], {"prediction": predictions / f"{case}.nii.gz"})
        uncertainty = read_volume(predictions / "uncertainty" / case / f"{region}.nii.gz").voxels.astype(np.float32)
        masks = dict(zip(view.regions, _pairs(view), strict=True))
        if region not in masks:
            raise CaseError(f"has no region {region}", case=case, remedy=f"it has {', '.join(masks)}")
        for panel in row:
            draw_image(panel, view)
        row[0].set_ylabel(case, fontsize=8, color=INK)
        shown = row[1].imshow(in_plane(view, uncertainty), cmap="magma", vmin=0, vmax=100, origin="lower", alpha=0.9)
        for panel, threshold in zip(row[2:], _THRESHOLDS, strict=True):
            found, true = masks[region]
            kinds = _kinds(found, true, uncertainty > threshold)
            panel.imshow(in_plane(view, kinds), origin="lower", interpolation="nearest")
            left = np.count_nonzero((uncertainty > threshold) & (found | true))
            panel.set_xlabel(f"{left} of {np.count_nonzero(found | true)} left out", fontsize=7, color=PALE)
    for panel, title in zip(grid[0], ("image", f"uncertainty of {region}", *map(str, _THRESHOLDS)), strict=True):
        panel.set_title(title, fontsize=9, color=INK, pad=4)
    figure.colorbar(shown, ax=grid[:, 1], location="bottom", shrink=0.8, pad=0.02).ax.tick_params(labelsize=6)
    patches = [Patch(facecolor=colour, label=name) for name, colour in _KINDS.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), fontsize=8, frameon=False)
    save_figure(figure, out)


def _pairs(view: CaseView) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Binary maps of prediction and reference for every region."""
    if view.reference is None:
        raise CaseError("has no reference labels", case=view.case)
    return list(zip(view.regions.encode(view.predictions["prediction"]), view.regions.encode(view.reference), strict=True))


def _kinds(found: NDArray[np.bool_], true: NDArray[np.bool_], left_out: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(D, H, W, 4) colours of hits, false alarms and misses; grey where they are left out, transparent elsewhere."""
    from matplotlib.colors import to_rgb

    colours = np.zeros((*found.shape, 4), dtype=np.float32)
    places = (found & true, found & ~true, ~found & true, left_out & (found | true))
    for place, colour in zip(places, _KINDS.values(), strict=True):
        colours[place] = (*to_rgb(colour), 0.85)
    return colours
