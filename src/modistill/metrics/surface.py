"""Distances between the surfaces of two binary maps: HD95 and surface Dice.

**Which surface.** The boundary voxels: those of the region with a face neighbour outside it. Beyond the edge of the image lies
background. **Which HD95.** The larger of the two directed 95th percentiles, percentiles interpolated linearly between order
statistics. **Which surface Dice.** The share of boundary voxels, both surfaces counted, within the tolerance of the other
surface. These are the definitions of MONAI's `compute_hausdorff_distance(percentile=95)` and `compute_surface_dice`, and the
values are the same. DeepMind's `surface-distance` puts the surface between the voxels and weighs its elements by area, MedPy
pools both directions before it takes the percentile (`pooled=True` here): numbers of the three must not share a table.

Both metrics come from one pair of distance sets. Only boundary voxels take part, found in the box around both regions; the
nearest voxel of the other surface is looked up in a k-d tree, and voxels that lie on both surfaces (distance 0) are not even
looked up. On tumours this beats a distance transform of the box, because a surface is small against the volume it encloses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.errors import GeometryError

__all__ = ["SurfaceDistances", "bounding_box", "hausdorff95_mm", "surface_dice", "surface_distances"]

# Positions are multiples of the spacing, so a distance that equals the tolerance on paper may exceed it by a rounding error.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class SurfaceDistances:
    """How far each boundary voxel of one region lies from the surface of the other, in mm.

    Attributes:
        from_prediction: (P,) distance of each boundary voxel of the prediction to the reference's surface.
        from_reference: (Q,) the other way round. Where the other surface is empty, distances are infinite.
    """

    from_prediction: NDArray[np.float64]
    from_reference: NDArray[np.float64]

    def hausdorff95_mm(self, *, pooled: bool = False) -> float:
        """95th percentile Hausdorff distance, in mm: inf where one region is empty, NaN where both are.

        Args:
            pooled: one percentile over both directions together (as MedPy), instead of the larger of two.
        """
        directed = [self.from_prediction, self.from_reference]
        sets = [np.concatenate(directed)] if pooled else [distances for distances in directed if distances.size]
        if not any(distances.size for distances in sets):
            return math.nan
        if any(np.isinf(distances).any() for distances in sets):
            return math.inf
        return max(float(np.quantile(distances, 0.95)) for distances in sets)

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces within `tolerance_mm` of the other: 0 where one region is empty, NaN where both are."""
        total = self.from_prediction.size + self.from_reference.size
        limit = tolerance_mm * (1 + _ROUNDING)
        near = np.count_nonzero(self.from_prediction <= limit) + np.count_nonzero(self.from_reference <= limit)
        return int(near) / total if total else math.nan


def surface_distances(prediction: NDArray[Any], reference: NDArray[Any], spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances between the surfaces of two binary maps.

    Args:
        prediction: binary map, 2 or 3 axes.
        reference: binary map of the same shape.
        spacing_mm: voxel size along each axis.

    Raises:
        GeometryError: shapes differ, or a voxel size is missing, not positive or not finite.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(f"prediction has shape {prediction.shape}, reference {reference.shape}")
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (prediction.ndim,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise GeometryError(f"{prediction.ndim} positive voxel sizes in mm are needed, not {tuple(spacing_mm)}")
    predicted, true = prediction.astype(bool, copy=False), reference.astype(bool, copy=False)
    box = bounding_box(predicted | true)
    predicted, true = _surface(predicted[box]), _surface(true[box])
    return SurfaceDistances(_to_nearest(predicted, true, spacing), _to_nearest(true, predicted, spacing))


def hausdorff95_mm(
    prediction: NDArray[Any], reference: NDArray[Any], spacing_mm: Sequence[float], *, pooled: bool = False
) -> float:
    """95th percentile Hausdorff distance, in mm (definition: see the module; Huttenlocher et al., PAMI 15:850, 1993).

    Args:
        prediction: binary map, 2 or 3 axes.
        reference: binary map of the same shape.
        spacing_mm: voxel size along each axis.
        pooled: one percentile over both directions together, instead of the larger of two.

    Returns:
        mm; inf where one map is empty, NaN where both are: what that counts is a rule of the protocol.

    Raises:
        GeometryError: shapes differ, or a voxel size is missing or not positive.

    Example:
        Two single voxels, three steps of 2 mm apart:

        >>> maps = np.eye(4, dtype=bool)
        >>> hausdorff95_mm(maps[:1], maps[3:], spacing_mm=(1, 2))
        6.0
    """
    return surface_distances(prediction, reference, spacing_mm).hausdorff95_mm(pooled=pooled)


def surface_dice(prediction: NDArray[Any], reference: NDArray[Any], spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Share of both surfaces that lies within `tolerance_mm` of the other (Nikolov et al., arXiv:1809.04430).

    Args:
        prediction: binary map, 2 or 3 axes.
        reference: binary map of the same shape.
        spacing_mm: voxel size along each axis.
        tolerance_mm: largest distance that counts as right.

    Returns:
        0 to 1; 0 where one map is empty, NaN where both are.

    Raises:
        GeometryError: shapes differ, or a voxel size is missing or not positive.

    Example:
        >>> maps = np.eye(4, dtype=bool)
        >>> [surface_dice(maps[:1], maps[1:2], (1, 2), tolerance_mm) for tolerance_mm in (1, 2)]
        [0.0, 1.0]
    """
    return surface_distances(prediction, reference, spacing_mm).surface_dice(tolerance_mm)


def bounding_box(region: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around a binary map, one slice an axis (empty slices for an empty map).

    Example:
        >>> bounding_box(np.array([[0, 0, 0, 0], [0, 1, 0, 1]], dtype=bool))
        (slice(1, 2, None), slice(1, 4, None))
    """
    box: list[slice] = []
    for axis in range(region.ndim):
        # Cropping axis by axis: each projection walks only through what the earlier axes have left.
        inside = np.flatnonzero(region.any(axis=tuple(other for other in range(region.ndim) if other != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0))
        region = region[(*[slice(None)] * axis, box[-1])]
    return tuple(box)


def _surface(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of a region that have a face neighbour outside it."""
    from scipy.ndimage import binary_erosion

    return np.asarray(region & ~binary_erosion(region), dtype=np.bool_)


def _to_nearest(surface: NDArray[np.bool_], other: NDArray[np.bool_], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of every voxel of `surface` to the nearest voxel of `other`, in mm; inf where `other` is empty."""
    from scipy.spatial import KDTree

    if not other.any():
        return np.full(int(np.count_nonzero(surface)), np.inf)
    distances = np.zeros(int(np.count_nonzero(surface)))  # 0 for the voxels that both surfaces share
    elsewhere = np.argwhere(surface & ~other) * spacing
    if elsewhere.size:
        # A grid needs no balancing: half the building time, the same answers.
        tree = KDTree(np.argwhere(other) * spacing, balanced_tree=False, compact_nodes=False)
        distances[: len(elsewhere)] = tree.query(elsewhere)[0]
    return distances
