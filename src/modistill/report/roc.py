"""ROC curves of several runs, one colour a run: of voxels on the left, of the detection of tumours on the right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modistill.evaluation.roc import RunROCs
from modistill.metrics.roc import DETECTION_THRESHOLDS, detection_curve, envelope
from modistill.report.figures import INK, PALE, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_roc"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E8B800", "#56B4E9", "#7F7F7F")  # after Okabe and Ito
_MARKED = DETECTION_THRESHOLDS.index(0.5)


def draw_roc(found: RunROCs, out: Path) -> None:
    """A row for every region; areas with their intervals stand in the legend.

    Args:
        found: curves of one or more runs.
        out: the PNG file.
    """
    from matplotlib.figure import Figure

    regions = list(dict.fromkeys(one.region for one in found.curves))
    figure = Figure(figsize=(7.6, 3.75 * len(regions) + 0.2), dpi=150, layout="constrained")
    for (left, right), region in zip(figure.subplots(len(regions), 2, squeeze=False), regions, strict=True):
        curves = [one for one in found.curves if one.region == region]
        detected = [detection_curve(list(one.detections.values())) for one in curves]
        most = max(1.0, *(1.1 * envelope(*one)[0][-1] for one in detected))
        for number, (one, (false, sensitivity)) in enumerate(zip(curves, detected, strict=True)):
            colour = _COLOURS[number % len(_COLOURS)]
            rates, label = one.pooled.curve, f"{one.run}  {one.pooled.area:.3f}"
            if one.interval:
                label += f" [{one.interval[0]:.3f}, {one.interval[1]:.3f}]"
            left.plot(rates[0], rates[1], color=colour, linewidth=1.6, label=label)
            fewest, best = envelope(false, sensitivity)
            steps = [*fewest, most], [*best, best[-1]]
            right.plot(*steps, color=colour, linewidth=1.6, drawstyle="steps-post", label=one.run)
            if false[_MARKED] <= most:  # it may be far beyond the best threshold
                right.plot(false[_MARKED], sensitivity[_MARKED], "o", color=colour, markersize=5, clip_on=False)
        left.plot([0, 1], [0, 1], color=PALE, linewidth=0.9, linestyle=":")
        left.set(xlim=(-0.01, 1.01), xlabel="false positive rate (voxels)", ylabel=f"sensitivity, {region} (voxels)")
        right.set(xlim=(-0.01 * most, most), xlabel="false positives per patient", ylabel=f"sensitivity, {region} (components)")
        for panel in (left, right):
            _finish(panel)
    rule = "AUC with 95 % interval over patients; right: at the best threshold, dot at 0.5 if in view"
    figure.supxlabel(f"{len(found.patients)} patients; {rule}", fontsize=7.5, color=PALE)
    save_figure(figure, out)


def _finish(panel: Axes) -> None:
    """What both kinds of panels share."""
    panel.set_ylim(-0.01, 1.01)
    panel.set_box_aspect(1)
    for label in (panel.xaxis.label, panel.yaxis.label):
        label.set(size=9, color=INK)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, frameon=False, loc="lower right")
