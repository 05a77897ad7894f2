"""Smooth random fields in millimetres: the same field at whatever grid it is looked at.

A field is white noise on a lattice that is fixed in the body (not in the image), band-passed around one wavelength and read
between its nodes with cubic B-splines. So a phantom of 32^3 voxels and one of 240x240x155 show the same patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEAD_REACH_MM", "Axes", "Field", "Floats", "Reach", "smooth_field"]

Floats = NDArray[np.floating[Any]]
Axes = tuple[Floats, Floats, Floats]
"""Coordinates in mm along the three axes of a grid."""

Reach = tuple[float, float, float]
"""Half the edges of a lattice in mm; beyond it a field goes on as it ends."""

HEAD_REACH_MM: Reach = (96.0, 112.0, 96.0)  # the head lies well inside, warps included
_NODES_PER_WAVELENGTH = 4.5


@dataclass(frozen=True)
class Field:
    """A random field over the body, of zero mean and unit variance, varying over about `wavelength_mm`.

    Attributes:
        coefficients: (a, b, c) spline coefficients on the lattice.
        step_mm: distance of lattice nodes.
    """

    coefficients: Floats
    step_mm: float

    def at(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Values at points (N,), coordinates in mm from the centre of the lattice."""
        from scipy.ndimage import map_coordinates

        places = [
            np.asarray((c / self.step_mm) + (n - 1) / 2, dtype=np.float32)
            for c, n in zip((x, y, z), self.coefficients.shape, strict=True)
        ]
        values = map_coordinates(self.coefficients, places, order=3, prefilter=False, mode="nearest")
        return np.asarray(values, dtype=np.float32)

    def on(self, axes: Axes) -> Floats:
        """Values on a whole grid (D, H, W); equal to `at` on its points, but much cheaper (one axis after the other)."""
        values = self.coefficients
        for axis, coordinates in enumerate(axes):
            weights = _spline_weights(coordinates / self.step_mm, self.coefficients.shape[axis])
            values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(values, dtype=np.float32)


def smooth_field(
    rng: np.random.Generator, wavelength_mm: float, *, low_pass: bool = False, reach_mm: Reach = HEAD_REACH_MM
) -> Field:
    """Draw a field.

    Args:
        rng: consumed by an amount that depends on wavelength and reach alone.
        wavelength_mm: of the band; must be at least 4 mm.
        low_pass: keep everything longer than the wavelength, too (blotches of all sizes rather than of one size).
        reach_mm: of the lattice.
    """
    from scipy.ndimage import gaussian_filter

    step = wavelength_mm / _NODES_PER_WAVELENGTH
    shape = tuple(2 * int(np.ceil(reach / step)) + 5 for reach in reach_mm)
    white = rng.standard_normal(shape, dtype=np.float32)
    fine = gaussian_filter(white, 0.8, mode="wrap")
    band = fine if low_pass else fine - gaussian_filter(fine, 1.3, mode="wrap")
    # Cubic B-splines smooth what they interpolate, so the variance is set for the smoothed field, not for the nodes.
    smoothed = gaussian_filter(band, np.sqrt(1 / 3), mode="wrap")
    return Field(np.asarray((band - band.mean()) / smoothed.std(), dtype=np.float32), step)


def _spline_weights(places: Floats, nodes: int) -> Floats:
    """(N, nodes) matrix of cubic B-spline weights for places in lattice units from the lattice's centre."""
    t = np.clip(places + (nodes - 1) / 2, 0, nodes - 1)
    distance = np.abs(t[:, None] - np.arange(nodes))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.asarray(np.where(distance < 1, near, far), dtype=np.float32)
