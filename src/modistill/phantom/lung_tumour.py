"""Lung tumours from formulas: irregular masses, half of them against the mediastinum or the chest wall.

Where a tumour lies decides how well CT shows it. Surrounded by lung it stands out by 900 HU; against muscle, heart or a vessel
it differs from them by a few HU, while T2-weighted MR shows it about twice as bright as muscle. The lung beyond some tumours
has collapsed: nearly the same as tumour in CT; in MR bright behind an obstruction, dark otherwise (Herold et al. 1991,
doi 10.1148/radiology.178.3.1994407).

Diameters are log-normal, 26 mm in the median in the lung and 36 mm against something, and lie between 10 and 60 mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from modistill.phantom.chest import Chest
from modistill.phantom.noise import Field, Floats, smooth_field
from modistill.phantom.shapes import Canvas, Place, ellipsoid
from modistill.phantom.trunk import REACH_MM, diaphragm

__all__ = ["SEATS", "LungTumour", "Mass", "draw_lung_tumour"]

SEATS: Mapping[str, float] = {"lung": 0.5, "mediastinum": 0.28, "wall": 0.22}
"""What a tumour lies in or against -> share of tumours."""

_SECOND = 0.2  # patients with a second mass
_COLLAPSE = 0.45  # masses of the hilum and mediastinum with collapsed lung beyond
_OBSTRUCTED = 0.7  # of these, behind an obstruction
_BRIGHT_MS, _DARK_MS = 105.0, 38.0  # T2 of collapsed lung with and without secretions
_SOFT = ("lung", "fat", "muscle", "blood", "gut", "collapse", "heart")


@dataclass(frozen=True)
class Mass:
    """One tumour.

    Attributes:
        seat: `lung` (all around it), `mediastinum` or `wall` (it lies against that).
        centre: in the body, mm.
        radii: mm along x, y, z.
        reach_mm: how far it grows into soft tissue beyond the lung.
        necrosis_mm: depth below its surface where necrosis begins; larger than the mass if it has none.
        collapse: centre and radii of the ellipsoid in which the lung has collapsed, if it has.
    """

    seat: str
    centre: Place
    radii: Place
    reach_mm: float
    necrosis_mm: float
    collapse: tuple[Place, Place] | None

    @property
    def radius(self) -> float:
        """Radius in mm of the sphere of equal volume."""
        return float(np.cbrt(np.prod(self.radii)))


@dataclass(frozen=True)
class LungTumour:
    """All masses of one patient.

    Attributes:
        masses: the first is the primary.
        collapse_t2_ms: T2 of this patient's collapsed lung.
        shape, detail: fields that make surfaces irregular.
    """

    masses: tuple[Mass, ...]
    collapse_t2_ms: float
    shape: Field
    detail: Field

    @property
    def seats(self) -> tuple[str, ...]:
        """What each mass lies in or against."""
        return tuple(mass.seat for mass in self.masses)

    def paint(self, canvas: Canvas, chest: Chest) -> None:
        """The masses and the collapsed lung on a canvas that shows the chest."""
        for mass in self.masses:
            if mass.collapse is not None:
                part = _around(canvas, *mass.collapse)
                depth = ellipsoid(part.x, part.y, part.z, *mass.collapse) + 10.0 * self._rough(part)
                part.paint("collapse", depth, over=("lung",), amount=0.98)
        for mass in self.masses:
            part = _around(canvas, mass.centre, mass.radii)
            depth = ellipsoid(part.x, part.y, part.z, mass.centre, mass.radii) + min(mass.radius, 16.0) * self._rough(part)
            depth = np.minimum(depth, chest.lung(part.x, part.y, part.z) + mass.reach_mm)
            part.paint("tumour", depth, over=_SOFT)
            part.paint("necrosis", depth - mass.necrosis_mm, over=("tumour",))

    def _rough(self, part: Canvas) -> Floats:
        return 0.22 * self.shape.at(part.x, part.y, part.z) + 0.10 * self.detail.at(part.x, part.y, part.z)


def draw_lung_tumour(rng: np.random.Generator, chest: Chest) -> LungTumour:
    """Draw the tumour of a patient into the lungs of a chest."""
    masses = [_draw_mass(rng, chest, ())]
    second = _draw_mass(rng, chest, tuple(masses))
    if rng.uniform() < _SECOND:
        masses.append(second)
    return LungTumour(
        masses=tuple(masses),
        collapse_t2_ms=_BRIGHT_MS if rng.uniform() < _OBSTRUCTED else _DARK_MS,
        shape=smooth_field(rng, 34.0, reach_mm=REACH_MM),
        detail=smooth_field(rng, 13.0, reach_mm=REACH_MM),
    )


def _draw_mass(rng: np.random.Generator, chest: Chest, others: tuple[Mass, ...]) -> Mass:
    seat = str(rng.choice(list(SEATS), p=list(SEATS.values())))
    typical, largest = (13.0, 20.0) if seat == "lung" else (18.0, 30.0)  # what is large touches something
    radius = float(np.clip(typical * np.exp(0.40 * rng.standard_normal()), 5.0, largest))
    centre, outwards = _place(rng, chest, seat, radius, others)
    stretch = np.exp(0.14 * rng.standard_normal(3).clip(-2, 2))
    radii = radius * stretch / np.prod(stretch) ** (1 / 3)
    reach = float(rng.uniform(2.0, 9.0)) if seat != "lung" and rng.uniform() < 0.6 else 0.8
    necrosis = float(rng.uniform(0.45, 0.75)) * radius if radius > 14 and rng.uniform() < 0.5 else 99.0
    beyond = (1.1 * radius + 10.0) * outwards + centre
    size = radius * rng.uniform(0.8, 1.3, 3) + 10.0
    collapsed = seat == "mediastinum" and bool(rng.uniform() < _COLLAPSE)
    return Mass(seat, _triple(centre), _triple(radii), reach, necrosis, (_triple(beyond), _triple(size)) if collapsed else None)


def _place(rng: np.random.Generator, chest: Chest, seat: str, radius: float, others: tuple[Mass, ...]) -> tuple[Floats, Floats]:
    """A centre in the lung at the distance from mediastinum and wall that the seat asks for, and the way to the periphery."""
    x, y, z = (rng.uniform(-reach, reach, 6000).astype(np.float32) for reach in (120.0, 90.0, 75.0))
    wall = chest.trunk.cage(x, y, z)
    middle = -chest.coat(x, y, z, chest.mediastinum(x, y, z))
    floor = z - diaphragm(x, y, chest.dome_mm)
    near = 0.55 * radius
    wanted = {
        "lung": np.minimum(np.minimum(wall, middle) - radius - 4.0, 0),
        "mediastinum": -np.abs(middle - near) + np.minimum(wall - 1.2 * radius, 0),
        "wall": -np.abs(wall - near) + np.minimum(middle - 1.2 * radius, 0),
    }[seat]
    wanted = np.where(np.minimum(wall, middle) > 1, wanted, -999) + np.minimum(floor - radius - 3.0, 0)
    for other in others:
        away = np.sqrt(sum((c - m) ** 2 for c, m in zip((x, y, z), other.centre, strict=True)))
        wanted = wanted + np.minimum(away - 1.5 * (other.radius + radius) - 10.0, 0)
    best = int(np.argmax(wanted + rng.uniform(0, 3.0, x.size)))
    side = 1.0 if x[best] > 0 else -1.0
    outwards = np.array([0.85 * side, rng.uniform(-0.5, 0.3), rng.uniform(-0.4, 0.4)])
    return np.array([x[best], y[best], z[best]], dtype=float), outwards / np.linalg.norm(outwards)


def _around(canvas: Canvas, centre: Place, radii: Place) -> Canvas:
    """The part of a canvas in which an ellipsoid with a rough surface lies."""
    low, high = ([c + sign * (1.5 * r + 8.0) for c, r in zip(centre, radii, strict=True)] for sign in (-1, 1))
    return canvas.part((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _triple(values: Floats) -> Place:
    return float(values[0]), float(values[1]), float(values[2])
