"""Shapes that bodies are made of, and the canvas they are painted on.

A shape is a signed depth in mm (positive inside) at points, to first order exact at its surface; `fill` turns depths into
fractions of voxels. The brain evaluates its shapes at a list of points; chest and abdomen paint them onto a `Canvas`, from the
outside in, each only where it can reach.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

from modistill.phantom.noise import Floats

__all__ = ["Canvas", "Course", "Place", "ellipsoid", "fill", "move", "sheet", "superellipse", "tube", "union"]

Place = tuple[float, float, float]
"""x, y, z in mm."""

Course = tuple[tuple[float, float, float, float], ...]
"""A polyline with a radius: x, y, z, radius in mm at each corner."""


def fill(depth: Floats, voxel_mm: float) -> Floats:
    """Fraction of a voxel that lies inside a surface `depth` mm away.

    Example:
        >>> fill(np.array([-1.0, 0.0, 0.5, 3.0], dtype=np.float32), 2.0).tolist()
        [0.0, 0.5, 0.75, 1.0]
    """
    return np.asarray(np.clip(0.5 + depth / voxel_mm, 0, 1), dtype=np.float32)


def ellipsoid(x: Floats, y: Floats, z: Floats, centre: tuple[float, ...], radii: tuple[float, ...]) -> Floats:
    """Depth in mm inside an ellipsoid, exact to first order at its surface."""
    parts = [(c - m) / r for c, m, r in zip((x, y, z), centre, radii, strict=True)]
    level = np.sqrt(sum(part**2 for part in parts) + 1e-6)
    slope = np.sqrt(sum((part / r) ** 2 for part, r in zip(parts, radii, strict=True)) + 1e-12)
    return np.asarray((1 - level) * level / slope, dtype=np.float32)


def superellipse(x: Floats, y: Floats, a: Floats | float, b: Floats | float, power: float) -> Floats:
    """Depth in mm inside |x/a|^power + |y/b|^power = 1, a cross-section between ellipse (power 2) and box.

    Example:
        >>> superellipse(np.array([90.0, 0.0]), np.array([0.0, 55.0]), 100.0, 50.0, 2.5).round(2).tolist()
        [10.0, -5.0]
    """
    u, v = np.abs(x / a) + 1e-6, np.abs(y / b) + 1e-6
    level = (u**power + v**power) ** (1 / power)
    slope = level ** (1 - power) * np.hypot(u ** (power - 1) / a, v ** (power - 1) / b)
    return np.asarray((1 - level) / slope, dtype=np.float32)


def tube(x: Floats, y: Floats, z: Floats, course: Course, factor: float = 1.0) -> Floats:
    """Depth inside a tube along a course, radii times `factor`."""
    depth = np.full_like(y, -np.inf)
    for (ax, ay, az, ar), (bx, by, bz, br) in pairwise(course):
        dx, dy, dz = bx - ax, by - ay, bz - az
        along = ((x - ax) * dx + (y - ay) * dy + (z - az) * dz) / (dx * dx + dy * dy + dz * dz)
        along = np.clip(along, 0, 1)
        far = np.sqrt((x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2 + (z - az - along * dz) ** 2)
        depth = np.maximum(depth, factor * (ar + along * (br - ar)) - far)
    return np.asarray(depth, dtype=np.float32)


def union(*depths: Floats, softness: float = 3.0) -> Floats:
    """Smooth maximum: a hull that fills the clefts between its parts, over about `softness` mm."""
    top = np.max(depths, axis=0)
    total = np.sum([np.exp(np.clip((depth - top) / softness, -30, 0)) for depth in depths], axis=0)
    return np.asarray(top + softness * np.log(total), dtype=np.float32)


def sheet(values: Floats, wavelength_mm: float) -> Floats:
    """Distance in mm to the zero sheet of a unit field, from its value and its mean slope."""
    return np.asarray(np.abs(values) * wavelength_mm / (2 * np.pi), dtype=np.float32)


def move(shares: dict[str, Floats], source: str, target: str, amount: Floats) -> None:
    """Turn up to `amount` of one tissue into another."""
    taken = np.minimum(amount, shares[source])
    shares[source] = shares[source] - taken
    shares[target] = shares[target] + taken if target in shares else taken


class Canvas:
    """Tissue fractions of a block of voxels; what is painted later lies on top of what was there.

    Args:
        tissues: names; the first fills the canvas at the start.
        x, y, z: (D, H, W) where in the body each voxel lies, mm. The body may be turned and bent in the grid.
        voxel_mm: edge of a voxel.
        shares: (T, D, H, W) fractions to paint on; new ones if none are given.
    """

    def __init__(
        self, tissues: Sequence[str], x: Floats, y: Floats, z: Floats, voxel_mm: float, shares: Floats | None = None
    ) -> None:
        self.tissues = tuple(tissues)
        self.x, self.y, self.z = x, y, z
        self.voxel_mm = voxel_mm
        if shares is None:
            shares = np.zeros((len(self.tissues), *x.shape), dtype=np.float32)
            shares[0] = 1
        self.shares = shares
        self._extents: list[tuple[Floats, Floats]] | None = None

    def part(self, low: Place, high: Place) -> Canvas:
        """The part of the canvas that holds a box of the body; it may be empty. Painting it paints the whole."""
        if self._extents is None:
            axes = enumerate((self.x, self.y, self.z))
            others = [tuple(other for other in range(3) if other != axis) for axis in range(3)]
            self._extents = [(c.min(axis=others[axis]), c.max(axis=others[axis])) for axis, c in axes] if self.x.size else []
        planes = []
        for (least, most), start, stop in zip(self._extents, low, high, strict=True) if self._extents else ():
            (there,) = np.nonzero((most >= start) & (least <= stop))
            planes.append(slice(int(there[0]), int(there[-1]) + 1) if there.size else slice(0, 0))
        box = tuple(planes) or (slice(0, 0),) * 3
        return Canvas(self.tissues, self.x[box], self.y[box], self.z[box], self.voxel_mm, self.shares[(slice(None), *box)])

    def share(self, *tissues: str) -> Floats:
        """Fraction of these tissues together, (D, H, W)."""
        return np.asarray(sum(self.shares[self.tissues.index(name)] for name in tissues), dtype=np.float32)

    def paint(self, tissue: str, depth: Floats, *, over: Collection[str] | None = None, amount: float = 1.0) -> None:
        """Paint the inside of a shape.

        Args:
            tissue: what it becomes.
            depth: (D, H, W) mm inside the shape.
            over: the only tissues that give way; all by default.
            amount: fraction of the shape that becomes `tissue`, for what is thinner than a voxel or interspersed.
        """
        self.blend(tissue, amount * fill(depth, self.voxel_mm), over=over)

    def blend(self, tissue: str, fraction: Floats, *, over: Collection[str] | None = None) -> None:
        """Turn a fraction (D, H, W) of what is there, or of the tissues `over`, into one tissue."""
        target = self.shares[self.tissues.index(tissue)]
        if over is None:
            self.shares *= 1 - fraction
            target += fraction
            return
        taken = np.zeros_like(target)
        for name in over:
            source = self.shares[self.tissues.index(name)]
            part = source * fraction
            source -= part
            taken += part
        target += taken

    def tube(self, tissue: str, course: Course, *, over: Collection[str] | None = None) -> None:
        """Paint a tube; one thinner than a voxel keeps its volume, spread over the voxel's width."""
        part = self.part(*_box(course, self.voxel_mm))
        if part.x.size:
            thickest = max(radius for *_, radius in course)
            wide = max(1.0, 0.5 * self.voxel_mm / thickest)
            # Blurred over the width v of a voxel, a tube of radius v / 2 has the cross-section pi v^2 / 3.
            thin = min(1.0, 3 * (thickest / self.voxel_mm) ** 2)
            part.paint(tissue, tube(part.x, part.y, part.z, course, wide), over=over, amount=thin)

    def ellipsoid(self, tissue: str, centre: Place, radii: Place, *, over: Collection[str] | None = None) -> None:
        """Paint an ellipsoid."""
        reach = [r + self.voxel_mm for r in radii]
        low, high = ([c + sign * r for c, r in zip(centre, reach, strict=True)] for sign in (-1, 1))
        part = self.part((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        if part.x.size:
            part.paint(tissue, ellipsoid(part.x, part.y, part.z, centre, radii), over=over)


def _box(course: Course, margin: float) -> tuple[Place, Place]:
    """The box that holds a tube."""
    corners = np.array(course)
    reach = corners[:, 3:] + margin
    low, high = (corners[:, :3] - reach).min(axis=0), (corners[:, :3] + reach).max(axis=0)
    return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))
