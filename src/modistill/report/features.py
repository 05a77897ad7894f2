"""Maps of features, a panel a run: where tumour and background lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modistill.report.figures import INK, PALE, save_figure

__all__ = ["draw_features"]

_COLOURS = {True: "#D55E00", False: "#0072B2"}


def draw_features(
    maps: Mapping[str, NDArray[np.float64]],
    tumour: NDArray[np.bool_],
    captions: Mapping[str, str],
    out: Path,
    *,
    region: str,
    caption: str,
) -> None:
    """One dot a voxel; axes of such maps have no meaning, and are not drawn.

    Args:
        maps: run -> (N, 2).
        tumour: (N,) whether a voxel belongs to the region.
        captions: run -> a line below its panel.
        out: the PNG file.
        region: its name, for the legend.
        caption: a line below the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(3.3 * len(maps) + 0.2, 3.9), dpi=150, layout="constrained")
    colours = np.where(tumour, _COLOURS[True], _COLOURS[False])
    order = np.random.default_rng(0).permutation(len(tumour))  # neither kind is drawn over the other
    for panel, (run, places) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        size = float(np.clip(9000 / len(tumour), 1.5, 14))
        panel.scatter(*places[order].T, s=size, c=colours[order], alpha=0.6, linewidths=0)
        panel.set(xticks=[], yticks=[])
        panel.set_box_aspect(1)
        panel.set_title(run, fontsize=10, color=INK)
        panel.set_xlabel(captions[run], fontsize=8, color=INK)
        panel.spines[:].set_color("#D0D0D0")
    dots = [
        Line2D([], [], marker="o", linestyle="", markersize=5, color=colour, label=region if inside else "background")
        for inside, colour in _COLOURS.items()
    ]
    figure.legend(handles=dots, loc="outside upper center", ncols=2, fontsize=8, frameon=False, handletextpad=0.1)
    figure.supxlabel(caption, fontsize=7.5, color=PALE)
    save_figure(figure, out)
