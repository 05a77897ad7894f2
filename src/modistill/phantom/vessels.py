"""Trees of vessels: a branch runs towards the middle of the region it feeds, which it then halves, until a region is small.

After Tawhai et al. 2000 (doi 10.1114/1.289), who grow airways so. Radii shrink by Murray's law, r^3 = r1^3 + r2^3 (1926,
doi 10.1073/pnas.12.3.207), which for two equal branches is a factor of 2^(-1/3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from modistill.phantom.noise import Floats
from modistill.phantom.shapes import Canvas, Course, Place

__all__ = ["grow_tree", "paint_tree"]


def grow_tree(rng: np.random.Generator, start: Place, points: Floats, radius_mm: float, smallest: int) -> Iterator[Course]:
    """Grow a tree.

    Args:
        rng: for the lengths of branches.
        start: the root.
        points: (N, 3) spread evenly over the organ, mm.
        radius_mm: of the trunk.
        smallest: number of points that are fed without branching any more.

    Yields:
        Branches, each as a tube.
    """
    middle = points.mean(axis=0)
    way = float(rng.uniform(0.35, 0.5))
    end = tuple(float(s + way * (m - s)) for s, m in zip(start, middle, strict=True))
    thinner = radius_mm * 2 ** (-1 / 3)
    yield ((*start, radius_mm), (end[0], end[1], end[2], thinner))
    if len(points) < 2 * smallest:
        return
    spread = points - middle
    along = spread @ np.linalg.eigh(spread.T @ spread)[1][:, -1]  # the longest axis of the region
    for half in (points[along > np.median(along)], points[along <= np.median(along)]):
        yield from grow_tree(rng, (end[0], end[1], end[2]), half, thinner, smallest)


def paint_tree(canvas: Canvas, tissue: str, branches: Sequence[Course], over: Collection[str]) -> None:
    """Paint the branches that reach a canvas."""
    if not canvas.z.size:
        return
    lowest, highest = float(canvas.z.min()) - 10.0, float(canvas.z.max()) + 10.0
    for branch in branches:
        ends = [corner[2] for corner in branch]
        if max(ends) > lowest and min(ends) < highest:
            canvas.tube(tissue, branch, over=over)
