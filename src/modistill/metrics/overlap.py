"""Overlap of two binary maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.errors import GeometryError

__all__ = ["dice"]


def dice(prediction: NDArray[Any], reference: NDArray[Any], *, smooth: float = 0.0) -> float:
    """Dice coefficient, `(2 |P n R| + smooth) / (|P| + |R| + smooth)`.

    Dice, Ecology 26:297 (1945). The plain form (`smooth = 0`) is what the BraTS servers report; `smooth = 1` is what HAD-Net's
    validation computes, where an empty reference with `n` false voxels still scores `1 / (n + 1)`.

    Args:
        prediction: binary map, any shape (other types: everything that is not 0 belongs to the region).
        reference: binary map of the same shape.
        smooth: added above and below, in voxels.

    Returns:
        0 to 1. NaN where both maps are empty and nothing is smoothed: what that counts is a rule of the
        `modistill.evaluation.protocol.Protocol`.

    Raises:
        GeometryError: the shapes differ.

    Example:
        >>> dice(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 1]))
        0.4
        >>> dice(np.array([1, 1, 1]), np.array([0, 0, 0]), smooth=1)
        0.25
    """
    if prediction.shape != reference.shape:
        raise GeometryError(f"prediction has shape {prediction.shape}, reference {reference.shape}")
    predicted, true = prediction.astype(bool), reference.astype(bool)
    total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(true)) + smooth
    shared = int(np.count_nonzero(predicted & true))
    return (2 * shared + smooth) / total if total else float("nan")
