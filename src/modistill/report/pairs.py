"""Every sequence made of every other, of one patient, in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.data.cohort import CaseFiles
from modistill.data.folder import find_cases
from modistill.data.nifti import read_volume
from modistill.data.preprocessing import Preprocessing
from modistill.errors import CaseError
from modistill.evaluation.synthesis import PAIR
from modistill.evaluation.translations import real_on_scale
from modistill.files import read_json
from modistill.metrics.synthesis import psnr
from modistill.report.figures import INK, PALE, REGION_COLOURS, CaseView, draw_image, in_plane, save_figure, view_case

__all__ = ["draw_pairs"]

_REAL = "#009E73"  # frames of what was acquired
_OUTLINE: dict[str, Any] = {"levels": [0.5], "colors": [REGION_COLOURS["WT"]], "linewidths": 0.7}


def draw_pairs(patients: Path, translated: Path, out: Path, *, case: str | None = None) -> None:
    """A row for every source, a column for every target; framed in the diagonal what was acquired.

    All panels show the axial slice with most tumour, on one scale a column, and the outline of the reference's whole tumour.
    Below a synthetic image stands its PSNR in the voxels of the whole volume in which the real one is not 0.

    Args:
        patients: cases with images and reference labels, in any layout.
        translated: folder that `modistill translate --pairs` wrote.
        out: the PNG file.
        case: id of the case; None for the first of which every pair is there.

    Raises:
        CaseError: the case lacks a translation or a real image, or no case has all.
        FileError, GeometryError, LabelError: a file cannot be used.
    """
    from matplotlib.figure import Figure

    names = (folder.name.partition(PAIR) for folder in sorted(translated.glob(f"?*{PAIR}?*")))
    pairs = [(source, target) for source, _, target in names]
    known = {one.id: one for one in find_cases(patients).cases}
    sources, targets = (sorted({pair[end] for pair in pairs}) for end in (0, 1))
    complete = [name for name, files in known.items() if _has_all(files, translated, pairs)]
    if not complete or case not in (None, *complete):
        wanted = f"{len(pairs)} translations and the images they imitate" if pairs else f"folders like flair{PAIR}t1ce"
        raise CaseError(f"lacks {wanted}", case=case, file=translated, remedy="modistill translate --pairs")
    files = known[case or complete[0]]
    real = {target: _real(files, target, translated, pairs) for target in targets}
    view = view_case(files, {})
    figure = Figure(figsize=(1.75 * len(targets) + 0.5, 1.95 * len(sources) + 0.7), dpi=150, layout="constrained")
    grid = figure.subplots(len(sources), len(targets), squeeze=False)
    for row, source in zip(grid, sources, strict=True):
        row[0].set_ylabel(f"from {source}", fontsize=9, color=INK)
        for panel, target in zip(row, targets, strict=True):
            image = real[target] if source == target else _made(files.id, source, target, translated)
            _show(panel, view, image)
            if source == target:
                panel.set_xlabel("acquired", fontsize=7.5, color=_REAL)
                for side in panel.spines.values():
                    side.set(visible=True, color=_REAL, linewidth=1.6)
            elif image is not None:
                brain = real[target] > 0
                panel.set_xlabel(f"synthetic, {psnr(image[brain], real[target][brain]):.1f} dB", fontsize=7.5, color=INK)
    for panel, target in zip(grid[0], targets, strict=True):
        panel.set_title(f"to {target}", fontsize=9, color=INK, pad=4)
    note = f"{files.id}, slice {view.slice}; outline: whole tumour of the reference. A synthetic image is not evidence."
    figure.supxlabel(note, fontsize=7.5, color=PALE)
    save_figure(figure, out)


def _place(case: str, source: str, target: str, translated: Path) -> Path:
    return translated / f"{source}{PAIR}{target}" / case / f"{case}_{target}.nii.gz"


def _has_all(files: CaseFiles, translated: Path, pairs: list[tuple[str, str]]) -> bool:
    there = all(_place(files.id, *pair, translated).is_file() for pair in pairs)
    return bool(pairs) and there and all(target in files.images for _, target in pairs)


def _real(files: CaseFiles, target: str, translated: Path, pairs: list[tuple[str, str]]) -> NDArray[np.float32]:
    """What was acquired, on the scale of what imitates it."""
    source = next(source for source, made in pairs if made == target)
    record = read_json(_place(files.id, source, target, translated).with_suffix("").with_suffix(".json"))
    case = files.read((target,), with_labels=False)
    case.require_real("it was not acquired")
    on_scale = real_on_scale(case.images[target], target, Preprocessing.from_json(record["preprocessing"]), case=files.id)
    return np.asarray(on_scale.voxels, dtype=np.float32)


def _made(case: str, source: str, target: str, translated: Path) -> NDArray[np.float32] | None:
    path = _place(case, source, target, translated)
    if not path.is_file():
        return None
    scale = read_json(path.with_suffix("").with_suffix(".json"))["scale"]
    low, high = scale["lowest"], scale["highest"]
    return np.asarray((read_volume(path).voxels - low) / (high - low), dtype=np.float32)


def _show(panel: Any, view: CaseView, image: NDArray[np.float32] | None) -> None:
    """One slice of an image from 0 to 1, on black where there is none."""
    shown = np.zeros_like(view.image) if image is None else image
    draw_image(panel, view, in_plane(view, shown))
    if view.reference is not None and image is not None:
        tumour = in_plane(view, view.reference > 0).astype(float)
        if tumour.any():
            panel.contour(tumour, **_OUTLINE)
