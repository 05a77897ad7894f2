"""Pictures: how a training went, and what models found in patients.

Matplotlib is imported when a picture is drawn, without its global state. The colours of the regions are the same everywhere, and
told apart by people who do not tell red from green.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modistill.data.folder import find_cases
from modistill.data.naming import BRATS_REGIONS, LabelConvention, conventions, guess_convention
from modistill.data.nifti import read_labels, read_volumes
from modistill.data.regions import Regions
from modistill.data.volume import require_same_grid
from modistill.errors import CaseError
from modistill.files import read_json, write_file
from modistill.log import LogRow, read_log
from modistill.metrics.overlap import dice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["REGION_COLOURS", "CaseView", "draw_predictions", "figure_cases", "plot_progress", "view_case"]

REGION_COLOURS: Mapping[str, str] = {"WT": "#56B4E9", "TC": "#E8B800", "ET": "#D55E00"}
_OTHER_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#8C564B", "#7F7F7F")  # Okabe and Ito's palette, and two more
_INK, _PALE = "#222222", "#8A8A8A"
_PREFERRED = ("flair", "t2", "t1ce", "t1")  # the sequence in which a whole tumour is seen best comes first


@dataclass(frozen=True)
class CaseView:
    """What is shown of one case. All arrays are (D, H, W) on canonical axes.

    Attributes:
        case: its id.
        image: intensities.
        image_name: the modality.
        spacing_mm: of a voxel.
        reference: label map; None where there is none.
        predictions: name of a model -> label map, in the same numbers.
        regions: what the numbers mean.
    """

    case: str
    image: NDArray[Any]
    image_name: str
    spacing_mm: tuple[float, float, float]
    reference: NDArray[Any] | None
    predictions: Mapping[str, NDArray[Any]]
    regions: Regions

    @property
    def slice(self) -> int:
        """The axial slice with most tumour: in the reference, else in any prediction, else the middle one."""
        candidates = [self.reference] if self.reference is not None else []
        for labels in (*candidates, *self.predictions.values()):
            areas = np.count_nonzero(labels, axis=(0, 1))
            if areas.any():
                return int(areas.argmax())
        return self.image.shape[2] // 2

    def scores(self, name: str) -> dict[str, float]:
        """Region -> Dice of the whole volume; NaN where both are empty."""
        if self.reference is None:
            return {}
        pairs = zip(self.regions.encode(self.predictions[name]), self.regions.encode(self.reference), strict=True)
        return {region: dice(*pair) for region, pair in zip(self.regions, pairs, strict=True)}


def draw_predictions(
    patients: Path, predictions: Sequence[Path], out: Path, *, cases: Sequence[str] | None = None, count: int = 3
) -> None:
    """A picture of what several models found in the same patients.

    Args:
        patients: cases with images and, where there are any, reference labels, in any layout.
        predictions: folders that `modistill predict` wrote; their names stand above the columns.
        out: the PNG file.
        cases: ids to show; else the first `count` that every folder has.

    Raises:
        CaseError: a case asked for is not everywhere, or none is.
        FileError, GeometryError, LabelError: a file cannot be used.
    """
    known = {case.id: case for case in find_cases(patients).cases}
    common = [case for case in known if all((folder / f"{case}.nii.gz").exists() for folder in predictions)]
    wanted = list(cases) if cases is not None else common[:count]
    if absent := [case for case in wanted if case not in common]:
        raise CaseError("lacks images or a prediction", case=absent[0], remedy="predict it with every model first")
    if not wanted:
        raise CaseError("no case has a prediction in every folder", file=patients, remedy="predict the same cases")
    maps = {folder.resolve().name: folder for folder in predictions}
    views = [view_case(known[case], {name: folder / f"{case}.nii.gz" for name, folder in maps.items()}) for case in wanted]
    figure_cases(views, out)


def view_case(files: Any, predictions: Mapping[str, Path]) -> CaseView:
    """Read what is to be shown of one case (`CaseFiles`): the image in which a tumour is seen best, and its label maps.

    Label maps may number their labels differently; they are brought to class indices first.
    """
    shown = min(files.modalities, key=lambda name: _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED))
    source = files.images[shown]
    image = read_volumes(source.path, [source.channel])[0]
    found: dict[str, NDArray[Any]] = {}
    convention: LabelConvention | None = None
    for name, path in predictions.items():
        labels = read_labels(path)
        require_same_grid(image, labels, reference_name=shown, other_name=name)
        sidecar = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
        convention = _convention(labels.voxels, read_json(sidecar).get("convention") if sidecar.exists() else files.convention)
        found[name] = convention.to_classes(labels.voxels)
    reference = None
    if files.labels is not None:
        labels = read_labels(files.labels)
        own = _convention(labels.voxels, files.convention)
        reference, convention = own.to_classes(labels.voxels), convention or own
    regions = Regions({"labels": {1}}) if convention is None else convention.class_regions
    return CaseView(files.id, image.voxels, shown, image.spacing_mm, reference, found, regions)


def figure_cases(views: Sequence[CaseView], out: Path, *, caption: str | None = None) -> None:
    """One row a case: the image, the reference, and what each model found, in the slice with most tumour.

    Regions are drawn from the outermost inwards; below each panel stands the Dice of the whole volume. The patient's right is
    on the left, as radiologists look at them.

    Args:
        views: cases with predictions of the same models.
        out: the PNG file.
        caption: a line below the picture.
    """
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(name for view in views for name in view.predictions))
    columns = ["image", *(["reference"] if any(view.reference is not None for view in views) else []), *models]
    figure = Figure(figsize=(1.95 * len(columns) + 0.45, 2.45 * len(views) + 0.75), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.0, hspace=0.0)  # type: ignore[union-attr]
    panels = figure.subplots(len(views), len(columns), squeeze=False)
    for row, view in zip(panels, views, strict=True):
        for panel, column in zip(row, columns, strict=True):
            _panel(panel, view, column)
        row[0].set_ylabel(view.case, fontsize=8, color=_INK)
    for panel, column in zip(panels[0], columns, strict=True):
        panel.set_title(column if column != "image" else "", fontsize=9, color=_INK, pad=4)
    _legend(figure, views[0].regions, caption or "numbers: Dice of the whole volume, – where both are empty")
    _save(figure, out)


def plot_progress(log_csv: Path, out: Path) -> None:
    """How a training went: the terms of each player's loss, and the validation, against the epoch.

    Args:
        log_csv: rows (epoch, step, seconds, name, value) as `modistill.training` writes them.
        out: the PNG file; nothing is written while the log is empty.
    """
    from matplotlib.figure import Figure

    rows = read_log(log_csv)
    if not rows:
        return
    terms = {row.name.split("/")[1]: {} for row in rows if row.name.startswith("train/")}  # type: dict[str, Any]
    for row in rows:
        if row.name.startswith("train/"):
            _, player, term = row.name.split("/", 2)
            terms[player].setdefault(term, []).append(row)
    scores: dict[str, list[LogRow]] = {}
    for row in rows:
        if row.name.startswith("validation/"):
            scores.setdefault(row.name.removeprefix("validation/").removeprefix("dice/"), []).append(row)
    titles = [*terms, *(["validation Dice"] if scores else [])]
    figure = Figure(figsize=(3.7 * len(titles) + 0.3, 3.1), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    for panel, title, lines in zip(panels, titles, [*terms.values(), scores], strict=False):
        _curves(panel, title, lines)
    _save(figure, out)


# --------------------------------------------------------------------------- parts of the pictures


def _panel(panel: Axes, view: CaseView, column: str) -> None:
    """One slice with its regions."""
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(False)
    labels = view.reference if column == "reference" else view.predictions.get(column)
    window = _window(view)
    image = _axial(view.image, view.slice)[window].astype(np.float32)
    low, high = np.percentile(image[image > image.min()], (1, 99.5)) if np.ptp(image) else (0, 1)
    aspect = view.spacing_mm[1] / view.spacing_mm[0]
    panel.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect, interpolation="lanczos")
    if column == "image":
        panel.set_xlabel(f"{view.image_name}, slice {view.slice}", fontsize=7.5, color=_PALE)
        panel.text(0.03, 0.97, "R", transform=panel.transAxes, fontsize=7, color="white", va="top")
    elif labels is None:
        panel.set_xlabel("none", fontsize=7.5, color=_PALE)
    else:
        _overlay(panel, _axial(labels, view.slice)[window], view.regions)
    if column in view.predictions:
        numbers = [f"{region} {'–' if np.isnan(value) else f'{value:.2f}'}" for region, value in view.scores(column).items()]
        panel.set_xlabel("   ".join(numbers), fontsize=7.5, color=_INK)


def _overlay(panel: Axes, labels: NDArray[Any], regions: Regions) -> None:
    for (name, mask), colour in zip(zip(regions, regions.encode(labels), strict=True), _colours(regions), strict=True):
        if not mask.any():
            continue
        rgba = np.zeros((*mask.shape, 4), dtype=np.float32)
        rgba[mask] = _rgba(colour, 0.22)
        panel.imshow(rgba, origin="lower", aspect=panel.get_aspect(), interpolation="nearest", label=name)
        framed = np.pad(mask.astype(float), 1)  # a region at the border of the picture is outlined as well
        d, h = (np.arange(-1, n + 1) for n in mask.shape)
        panel.contour(h, d, framed, levels=[0.5], colors=[colour], linewidths=1.1)
    panel.set_xlim(-0.5, labels.shape[1] - 0.5)
    panel.set_ylim(-0.5, labels.shape[0] - 0.5)


def _curves(panel: Axes, title: str, lines: Mapping[str, Sequence[LogRow]]) -> None:
    """One line a name, against the epoch, labelled where it ends."""
    others = iter(_OTHER_COLOURS * 5)
    for name, rows in lines.items():
        colour = _INK if name == "score" else REGION_COLOURS.get(name) or next(others)
        style = {"color": colour, "linewidth": 1.6, "linestyle": "--" if name == "score" else "-"}
        epochs, values = [row.epoch + 1 for row in rows], [row.value for row in rows]
        panel.plot(epochs, values, marker="o", markersize=3 if len(rows) < 30 else 0, label=name, **style)
    if title == "validation Dice":
        panel.set_ylim(-0.02, 1.02)
    elif lines and all(row.value > 0 for rows in lines.values() for row in rows):
        panel.set_yscale("log")
    panel.set_title(title, fontsize=10, color=_INK, loc="left")
    panel.set_xlabel("epoch", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    panel.grid(alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.legend(fontsize=8, frameon=False)


def _legend(figure: Figure, regions: Regions, caption: str) -> None:
    from matplotlib.patches import Patch

    named = {"WT": "whole tumour", "TC": "tumour core", "ET": "enhancing tumour"}
    patches = [
        Patch(facecolor=colour, label=f"{name} {named[name]}" if set(regions) == set(BRATS_REGIONS) else name)
        for name, colour in zip(regions, _colours(regions), strict=True)
    ]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), fontsize=8, frameon=False)
    figure.supxlabel(caption, fontsize=7.5, color=_PALE)


def _axial(volume: NDArray[Any], index: int) -> NDArray[Any]:
    """(rows, columns) of an axial slice, to be drawn from below: anterior on top, the patient's right on the left."""
    return volume[::-1, :, index].T


def _window(view: CaseView) -> tuple[slice, slice]:
    """The part of the slice that is not background, with a margin."""
    plane = _axial(view.image, view.slice)
    inside = plane > plane.min()
    spans = []
    for axis in (0, 1):
        (hits,) = np.nonzero(inside.any(axis=1 - axis))
        spans.append(slice(max(0, int(hits[0]) - 3), int(hits[-1]) + 4) if len(hits) else slice(None))
    return spans[0], spans[1]


def _colours(regions: Regions) -> list[str]:
    others = iter(_OTHER_COLOURS * 5)
    return [REGION_COLOURS.get(name) or next(others) for name in regions]


def _rgba(colour: str, alpha: float) -> tuple[float, float, float, float]:
    from matplotlib.colors import to_rgba

    return to_rgba(colour, alpha)


def _convention(labels: NDArray[Any], name: str | None) -> LabelConvention:
    return conventions[name] if name in conventions else guess_convention(np.unique(labels).tolist())


def _save(figure: Figure, out: Path) -> None:
    write_file(out, lambda place: figure.savefig(place, format="png"))
