"""Volume of a region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["volume_ml"]


def volume_ml(region: NDArray[Any], spacing_mm: Sequence[float]) -> float:
    """Volume of a binary map, in ml: voxels times the volume of one.

    Args:
        region: binary map (D, H, W).
        spacing_mm: voxel size along each axis.

    Example:
        >>> volume_ml(np.ones((10, 10, 10)), (1, 1, 2.5))
        2.5
    """
    return int(np.count_nonzero(region)) * math.prod(spacing_mm) / 1000.0
