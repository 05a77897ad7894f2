"""Where a patch lies in a case: positions drawn with a preference for foreground, and cases smaller than the patch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modistill.data.geometry import Triple, centred, triple

__all__ = ["choose_start", "widen", "within"]


def choose_start(
    shape: Triple, size: Triple, rng: np.random.Generator, voxel: Sequence[int] | None = None, *, central: bool = False
) -> Triple:
    """Draw the first corner of a patch.

    Every position in which the patch lies inside the case (and holds `voxel`) is equally likely. Along an axis on which the
    case is smaller than the patch, the case lies in the middle and the corner is negative: the patch begins in the padding.

    Args:
        shape: (D, H, W) of the case.
        size: (D, H, W) of the patch.
        rng: gives three numbers, whatever the arguments.
        voxel: index that the patch must hold.
        central: in its middle, as near as the ends of the case allow.

    Example:
        >>> choose_start((100, 8, 100), (10, 11, 100), np.random.default_rng(0), voxel=(99, 0, 0))
        (90, -1, 0)
        >>> choose_start((100, 100, 100), (10, 11, 10), np.random.default_rng(0), voxel=(99, 50, 3), central=True)
        (90, 45, 0)
    """
    starts = []
    for axis, (n, p) in enumerate(zip(shape, size, strict=True)):
        low, high = 0, n - p
        if high < 0:
            low = high = -centred(n, p)[0]
        elif voxel is not None:
            if central:
                low = high = min(max(int(voxel[axis]) - p // 2, low), high)
            else:
                low, high = max(low, int(voxel[axis]) - p + 1), min(high, int(voxel[axis]))
        starts.append(int(rng.integers(low, high + 1)))
    return triple(starts)


def widen(start: Triple, size: Triple, margin: Sequence[int]) -> tuple[Triple, Triple]:
    """First corner and size of a patch with this many voxels more at either end of the first axes.

    Example:
        >>> widen((0, 4, 7), (8, 8, 1), (2, 3))
        ((-2, 1, 7), (12, 14, 1))
    """
    margins = [*margin, 0, 0, 0][:3]
    return triple([n - m for n, m in zip(start, margins, strict=True)]), triple(
        [n + 2 * m for n, m in zip(size, margins, strict=True)]
    )


def within(start: Triple, size: Triple, shape: Triple) -> tuple[tuple[slice, ...], tuple[tuple[int, int], ...]]:
    """The part of a patch that lies inside the case, and the padding (before, after) around it.

    Example:
        >>> within((-1, 2, 0), (4, 4, 4), (3, 3, 9))
        ((slice(0, 3, None), slice(2, 3, None), slice(0, 4, None)), ((1, 0), (0, 3), (0, 0)))
    """
    slices, padding = [], []
    for first, p, n in zip(start, size, shape, strict=True):
        begin = min(max(first, 0), n)
        end = max(min(first + p, n), begin)
        slices.append(slice(begin, end))
        before = min(max(-first, 0), p)
        padding.append((before, p - before - (end - begin)))
    return tuple(slices), tuple(padding)
