"""Pictures: how a training went, and what models found in patients.

Matplotlib is imported when a picture is drawn, without its global state. The colours of the regions are the same everywhere,
and people who do not tell red from green can tell them apart.
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
from modistill.evaluation.protocol import METRICS
from modistill.evaluation.tables import modalities_of, subset_means
from modistill.files import read_json, write_file
from modistill.log import LogRow, read_log
from modistill.metrics.overlap import dice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from modistill.evaluation.scores import Scores

__all__ = [
    "INK",
    "PALE",
    "REGION_COLOURS",
    "SOFT_TISSUE_HU",
    "CaseView",
    "draw_image",
    "draw_predictions",
    "figure_cases",
    "in_plane",
    "plot_progress",
    "plot_subsets",
    "save_figure",
    "view_case",
]

REGION_COLOURS: Mapping[str, str] = {"WT": "#56B4E9", "TC": "#E8B800", "ET": "#D55E00"}
_OTHER_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#8C564B", "#7F7F7F")  # Okabe and Ito's palette, and two more
INK, PALE = "#222222", "#8A8A8A"
_PREFERRED = ("flair", "t2", "t1ce", "t1")  # the sequence in which a whole tumour is seen best comes first


SOFT_TISSUE_HU = (-160, 240)  # the window of CT in which fat, muscle and tumours are told apart


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
            areas = np.asarray(np.count_nonzero(labels, axis=(0, 1)))
            if areas.any():
                return int(np.argmax(areas))
        return int(self.image.shape[2]) // 2

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
        cases: ids to show; None for the first that every folder has.
        count: how many of those.

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
    figure = Figure(figsize=(1.95 * len(columns) + 0.45, 2.45 * len(views) + 0.75), dpi=150, layout=_tight())
    panels = figure.subplots(len(views), len(columns), squeeze=False)
    for row, view in zip(panels, views, strict=True):
        for panel, column in zip(row, columns, strict=True):
            _panel(panel, view, column)
        row[0].set_ylabel(view.case, fontsize=8, color=INK)
    for panel, column in zip(panels[0], columns, strict=True):
        panel.set_title(column if column != "image" else "", fontsize=9, color=INK, pad=4)
    _legend(figure, views[0].regions, caption or "numbers: Dice of the whole volume, – where both are empty")
    save_figure(figure, out)


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
    shown: dict[str, dict[str, list[LogRow]]] = {}
    for row in sorted(rows, key=lambda row: row.name.startswith("validation/")):  # the validation is the last panel
        *path, name = row.name.split("/")
        title = "validation Dice" if path[0] == "validation" else "/".join(path[1:])
        shown.setdefault(title, {}).setdefault(name, []).append(row)
    figure = Figure(figsize=(3.7 * len(shown) + 0.3, 3.1), dpi=130, layout="constrained")
    for panel, (title, lines) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        _curves(panel, title, lines)
        panel.set_xlim(0.5, max(row.epoch for row in rows) + 1.5)
    save_figure(figure, out)


def plot_subsets(scores: Scores, out: Path, metric: str = "dice") -> None:
    """Means over the cases as a heat map: a row for every set of modalities, a column for every region.

    Args:
        scores: of one arm, from several sets of modalities.
        out: the PNG file.
        metric: a share from 0 to 1, such as "dice".
    """
    from matplotlib.figure import Figure

    means = subset_means(scores, metric)
    modalities = modalities_of(means)
    values = np.array([list(row.values()) for row in means.values()])
    size = (0.42 * len(modalities) + 0.75 * values.shape[1] + 0.9, 0.27 * len(values) + 1.0)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    widths = [0.42 * len(modalities), 0.75 * values.shape[1]]
    dots, heat = figure.subplots(1, 2, sharey=True, width_ratios=widths)
    for row, subset in enumerate(means):
        for column, name in enumerate(modalities):
            there = name in subset.split("+")
            dots.plot(column, row, "o", ms=6, mfc=INK if there else "white", mec=INK if there else PALE, mew=0.8)
    dots.set(xticks=range(len(modalities)), xlim=(-0.6, len(modalities) - 0.4), yticks=[])
    dots.set_xticklabels(modalities, fontsize=8, rotation=45, ha="left", rotation_mode="anchor")
    heat.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        shown = "–" if np.isnan(value) else f"{value:.2f}"
        heat.text(column, row, shown, ha="center", va="center", fontsize=8, color="black" if value > 0.6 else "white")
    heat.set(xticks=range(values.shape[1]), xticklabels=list(scores.regions))
    for panel in (dots, heat):
        panel.tick_params(length=0, labelsize=8, top=True, labeltop=True, bottom=False, labelbottom=False, left=False)
        panel.spines[:].set_visible(False)
    figure.supxlabel(f"{scores.runs[0]}: mean {METRICS[metric].title}, {len(scores.cases)} cases", fontsize=7.5, color=PALE)
    save_figure(figure, out)


# --------------------------------------------------------------------------- parts of the pictures


def draw_image(panel: Axes, view: CaseView, on_scale: NDArray[np.float32] | None = None) -> None:
    """The slice of a case, or another image of it from 0 to 1 (`in_plane`), without axes."""
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(False)
    image = in_plane(view, view.image).astype(np.float32) if on_scale is None else on_scale
    low, high = np.percentile(image[image > image.min()], (1, 99.9)) if np.ptp(image) else (0, 1)
    if on_scale is not None:
        low, high = 0, 1
    elif view.image_name == "ct":
        low, high = SOFT_TISSUE_HU
    aspect = view.spacing_mm[1] / view.spacing_mm[0]
    panel.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect, interpolation="lanczos")


def in_plane(view: CaseView, volume: NDArray[Any]) -> NDArray[Any]:
    """The part that is shown of a volume (D, H, W, ...) on the grid of the case, to be drawn from below."""
    return _axial(volume, view.slice)[_window(view)]


def _panel(panel: Axes, view: CaseView, column: str) -> None:
    """One slice with its regions."""
    draw_image(panel, view)
    labels = view.reference if column == "reference" else view.predictions.get(column)
    if column == "image":
        panel.set_xlabel(f"{view.image_name}, slice {view.slice}", fontsize=7.5, color=PALE)
        panel.text(0.03, 0.97, "R", transform=panel.transAxes, fontsize=7, color="white", va="top")
    elif labels is None:
        panel.set_xlabel("none", fontsize=7.5, color=PALE)
    else:
        _overlay(panel, in_plane(view, labels), view.regions)
    if column in view.predictions:
        numbers = [f"{region} {'–' if np.isnan(value) else f'{value:.2f}'}" for region, value in view.scores(column).items()]
        panel.set_xlabel("   ".join(numbers), fontsize=7.5, color=INK)


def _overlay(panel: Axes, labels: NDArray[Any], regions: Regions) -> None:
    """Each voxel in the colour of the innermost of its regions, and every region outlined."""
    from matplotlib.colors import to_rgb

    masks, colours = regions.encode(labels), _colours(regions)
    outer_first = sorted(range(len(masks)), key=lambda index: -int(np.count_nonzero(masks[index])))
    fill = np.zeros((*labels.shape, 4), dtype=np.float32)
    for index in outer_first:
        fill[masks[index]] = (*to_rgb(colours[index]), 0.38)
    panel.imshow(fill, origin="lower", aspect=panel.get_aspect(), interpolation="nearest")
    x, y = (np.arange(-1, n + 1) for n in reversed(labels.shape))
    for index in outer_first:
        if masks[index].any():  # padded, so that a region at the border of the picture is outlined as well
            panel.contour(x, y, np.pad(masks[index].astype(float), 1), levels=[0.5], colors=[colours[index]], linewidths=1.0)
    panel.set_xlim(-0.5, labels.shape[1] - 0.5)
    panel.set_ylim(-0.5, labels.shape[0] - 0.5)


def _curves(panel: Axes, title: str, lines: Mapping[str, Sequence[LogRow]]) -> None:
    """One line a name, against the epoch, labelled where it ends."""
    others = iter(_OTHER_COLOURS * 5)
    for name, rows in lines.items():
        colour = INK if name == "score" else REGION_COLOURS.get(name) or next(others)
        panel.plot(
            [row.epoch + 1 for row in rows],
            [row.value for row in rows],
            color=colour,
            linewidth=1.6,
            linestyle="--" if name == "score" else "-",
            marker="o",
            markersize=3 if len(rows) < 30 else 0,
            label=name,
        )
    values = [row.value for rows in lines.values() for row in rows]
    if title == "validation Dice":
        panel.set_ylim(-0.02, 1.02)
    elif min(values) > 0 and max(values) > 20 * min(values):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
    elif min(values) >= 0:
        panel.set_ylim(bottom=0)
    panel.set_title(title, fontsize=10, color=INK, loc="left")
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
    figure.supxlabel(caption, fontsize=7.5, color=PALE)


def _axial(volume: NDArray[Any], index: int) -> NDArray[Any]:
    """(rows, columns) of an axial slice, to be drawn from below: anterior on top, the patient's right on the left."""
    return volume[::-1, :, index].swapaxes(0, 1)


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


def _tight() -> Any:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03, wspace=0.0, hspace=0.0)


def _convention(labels: NDArray[Any], name: str | None) -> LabelConvention:
    return conventions[name] if name is not None and name in conventions else guess_convention(np.unique(labels).tolist())


def save_figure(figure: Figure, out: Path) -> None:
    """Write a picture as PNG."""
    write_file(out, lambda place: figure.savefig(place, format="png"))
