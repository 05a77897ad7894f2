"""What the means of a table hide: every case of every arm, beside its mean, the interval of this and the published mean."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modistill.evaluation.papers import Published, case_means, published_in, set_apart
from modistill.evaluation.protocol import METRICS
from modistill.evaluation.statistics import compare_paired
from modistill.report.figures import INK, PALE, REGION_COLOURS, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from modistill.evaluation.scores import Scores

__all__ = ["plot_arms"]

_COLOUR = "#009E73"  # of regions that have none of their own
_GAP = 0.6  # rows between the arms that are compared and the bounds
_SPREAD = 0.6  # of the cases of an arm, of the height of its row
_LETTERS = 18  # of the small print, on an inch
_POINT: dict[str, Any] = {"marker": "o", "ms": 3, "mec": "none", "alpha": 0.55, "ls": "none"}
_MEAN: dict[str, Any] = {"marker": "o", "ms": 5, "color": INK, "mec": "white", "mew": 0.6, "lw": 1.8}
_PUBLISHED: dict[str, Any] = {"marker": "D", "ms": 4.5, "mfc": "white", "mec": INK, "mew": 1.0, "ls": "none"}


def plot_arms(
    tables: Sequence[Scores],
    out: Path,
    metric: str = "dice",
    *,
    apart: Collection[str] = (),
    published: Published | None = None,
    title: str = "",
) -> None:
    """A panel for every region, a row for every arm.

    The points are its cases, each averaged over the seeds of the arm first, as in `paper_table`; on them lie their mean and its
    95 % interval (BCa bootstrap over cases), and an open mark where a paper has a mean.

    Args:
        tables: scores of all runs, named `arm/seed`.
        out: the PNG file.
        metric: which number.
        apart: arms that are bounds and no rivals, or these arms -> why; they stand below the others.
        published: arm -> mean and SD of a paper, as in `paper_table`.
        title: above the panels.
    """
    from matplotlib.figure import Figure

    values, fact = case_means(tables, metric), METRICS[metric]
    regions, theirs = tables[0].regions, published or {}
    shown = np.concatenate([cases[np.isfinite(cases)] for of_arm in values.values() for cases in of_arm.values()])
    # The axis begins at 0 where 0 means something and is not far from the cases.
    zero = (fact.better == "lower" or not fact.unit) and bool(shown.size) and 0 <= shown.min() < shown.max() / 2
    rows = _rows([arm for arm in values if arm not in apart], [arm for arm in values if arm in apart])
    size = (max(2.6 * len(regions) + 1.6, 5.4), 0.3 * max(rows.values()) + 1.7)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(1, len(regions), sharey=True, sharex=not fact.unit, squeeze=False)[0]
    for panel, region in zip(panels, regions, strict=True):
        for arm, row in rows.items():
            _cases(panel, row, values[arm][region], REGION_COLOURS.get(region, _COLOUR))
            if found := published_in(theirs.get(arm, {}), metric, region):
                panel.plot(found[0], row, zorder=4, **_PUBLISHED)
        if any(arm in apart for arm in rows):
            panel.axhline(sum(arm not in apart for arm in rows) - 0.5 + _GAP / 2, color=PALE, lw=0.6)
        panel.set_xlabel(fact.title + (f" ({fact.unit})" if fact.unit else ""), fontsize=9, color=INK)
    for panel, region in zip(panels, regions, strict=True):  # once all is drawn: they may share an axis
        _finish(panel, region, rows, zero=zero)
    _legend(figure, title, with_published=any(published_in(theirs.get(a, {}), metric, r) for a in rows for r in regions))
    note = f"{fact.better} is better; " if fact.better else ""
    note += f"{len({case for table in tables for case in table.cases})} cases, each averaged over the seeds of an arm first"
    bounds = [arm for arm in rows if arm in apart]
    infinite = sum(int(np.isinf(cases).sum()) for of_arm in values.values() for cases in of_arm.values())
    note += f"; {infinite} infinite values are not shown" if infinite else ""
    notes = [note, *([set_apart(bounds, apart)] if bounds else [])]
    lines = [line for note in notes for line in wrap(note, int(_LETTERS * size[0]))]
    figure.supxlabel("\n".join(lines), fontsize=7.5, color=PALE)
    save_figure(figure, out)


def _rows(rivals: Sequence[str], apart: Sequence[str]) -> dict[str, float]:
    """Arm -> its height from above; bounds below a gap."""
    heights = {arm: float(row) for row, arm in enumerate(rivals)}
    return heights | {arm: len(rivals) + _GAP + row for row, arm in enumerate(apart)}


def _cases(panel: Axes, row: float, values: NDArray[np.float64], colour: str) -> None:
    """The cases of an arm as points that keep clear of each other, their mean and its interval."""
    shown = np.sort(values[np.isfinite(values)])
    heights = _SPREAD * (np.arange(len(shown)) * (np.sqrt(5) - 1) / 2 % 1 - 0.5)  # neighbours are never level
    panel.plot(shown, row + heights, color=colour, zorder=2, **_POINT)
    found = compare_paired(np.zeros(len(values)).tolist(), values.tolist())  # of the mean itself: against 0
    if found.interval:
        panel.plot(found.interval, (row, row), color=INK, lw=_MEAN["lw"], solid_capstyle="butt", zorder=3)
    if found.mean is not None:
        panel.plot(found.mean, row, zorder=5, **_MEAN)


def _finish(panel: Axes, region: str, rows: dict[str, float], *, zero: bool) -> None:
    """What is the same in every panel."""
    panel.set_title(region, fontsize=10, color=INK, loc="left")
    panel.set_yticks(list(rows.values()), list(rows))
    panel.set_ylim(max(rows.values()) + 0.6, -0.6)
    if zero:
        panel.set_xlim(left=-0.015 * panel.get_xlim()[1])  # points at 0 are seen whole
    panel.tick_params(labelsize=8)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", alpha=0.25)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _legend(figure: Any, title: str, *, with_published: bool) -> None:
    from matplotlib.lines import Line2D

    shown = [
        Line2D([], [], color=PALE, label="case", **_POINT),
        Line2D([], [], label="mean, 95 % interval", **_MEAN),
        *([Line2D([], [], label="published mean, of other patients", **_PUBLISHED)] if with_published else []),
    ]
    how: dict[str, Any] = {"ncols": len(shown), "fontsize": 8, "frameon": False, "title": title or None, "title_fontsize": 10}
    figure.legend(handles=shown, loc="outside upper center", **how)
