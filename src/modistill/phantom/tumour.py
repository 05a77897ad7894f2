"""A glioma from formulas: necrosis, an incomplete enhancing rim, non-enhancing core, and oedema that follows white matter.

Sizes, and how often a patient shows no or hardly any enhancement, follow the volumes measured in 23 patients of BraTS 2021
(Baid et al. 2021, https://arxiv.org/abs/2107.02314). Labels are those of BraTS 2021: 1 necrosis and non-enhancing core,
2 oedema, 4 enhancing tumour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modistill.phantom.anatomy import Anatomy, Tissues
from modistill.phantom.noise import Field, Floats, smooth_field
from modistill.phantom.shapes import fill

__all__ = ["Focus", "Lesion", "Tumour", "draw_tumour"]

_KINDS = {  # how the core enhances: share of patients, rim in radii, bias of enhancement
    "rim": (0.50, (0.20, 0.50), (0.6, 2.0)),
    "solid": (0.18, (0.55, 0.95), (0.9, 2.0)),
    "sparse": (0.16, (1.0, 1.0), (-2.1, -1.2)),
    "none": (0.16, (1.0, 1.0), (0.0, 0.0)),
}
_OEDEMA_EDGE_MM = 4.0  # oedema fades rather than ends
_SECOND_FOCUS = 0.15


@dataclass(frozen=True)
class Focus:
    """One core: an ellipsoid made irregular.

    Attributes:
        centre: x, y, z in mm.
        radii: mm along x, y, z.
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]

    @property
    def radius(self) -> float:
        """Radius in mm of the sphere of equal volume."""
        return float(np.cbrt(np.prod(self.radii)))

    def depth(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Depth in mm below the surface of the ellipsoid; outside, minus about the distance to it."""
        parts = [(c - m) / r for c, m, r in zip((x, y, z), self.centre, self.radii, strict=True)]
        return np.asarray((1 - np.sqrt(sum(part**2 for part in parts))) * self.radius, dtype=np.float32)


@dataclass(frozen=True)
class Lesion:
    """What the tumour makes of N points.

    Attributes:
        shares: tissue -> fraction (N,): necrosis, solid, enhancing, oedema; their sum is at most one.
        wetness: 0 to 1, how far inside the oedema (N,); water is lost towards its edge.
        labels: (N,) reference labels, the largest share wins.
    """

    shares: Mapping[str, Floats]
    wetness: Floats
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Tumour:
    """One patient's tumour: numbers and fields drawn once, evaluated at any points.

    Attributes:
        kind: `rim` (around necrosis), `solid` (mostly enhancing), `sparse` (a few enhancing spots) or `none`.
        foci: cores, the first is the largest.
        rim_mm: thickness of viable tumour around necrosis.
        enhancement: what is added to a unit field before its positive part enhances: 1 nearly everything, -2 next to nothing.
        oedema_mm: reach of the oedema in white matter.
        push: part of the core's volume that displaces brain rather than replaces it.
        shape, detail, rim, leak, fingers: fields of the outline, its roughness, the rim's thickness, where it enhances, and
            the oedema's outline.
    """

    kind: str
    foci: tuple[Focus, ...]
    rim_mm: float
    enhancement: float
    oedema_mm: float
    push: float
    shape: Field
    detail: Field
    rim: Field
    leak: Field
    fingers: Field

    def displace(self, x: Floats, y: Floats, z: Floats, hull: Floats) -> tuple[Floats, Floats, Floats]:
        """Where the tissue now at these points lay before the tumour grew; the skull holds what lies near it (mass effect)."""
        focus = self.foci[0]
        offsets = [np.asarray(c - m, dtype=np.float32) for c, m in zip((x, y, z), focus.centre, strict=True)]
        squared = sum(offset**2 for offset in offsets) / focus.radius**2
        held = np.clip(hull / 20.0, 0, 1)
        shrink = 1 - self.push * held * np.exp(-squared / 4.0)
        moved = [m + offset * shrink for m, offset in zip(focus.centre, offsets, strict=True)]
        return moved[0], moved[1], moved[2]

    def at(self, x: Floats, y: Floats, z: Floats, brain: Tissues, voxel_mm: float) -> Lesion:
        """The tumour at points (N,) of a brain, for voxels of `voxel_mm`."""
        smooth = np.max([focus.depth(x, y, z) for focus in self.foci], axis=0)
        (near,) = np.nonzero(smooth > -2.2 * self.oedema_mm - 25.0)
        x, y, z = x[near], y[near], z[near]
        inside, cerebrum = brain.inside[near], brain.cerebrum[near]
        rough = 0.30 * self.shape.at(x, y, z) + 0.09 * self.detail.at(x, y, z)
        outline = np.max([focus.depth(x, y, z) + min(focus.radius, 18.0) * rough for focus in self.foci], axis=0)
        held = np.minimum(outline, inside)  # does not cross the fissures between the hemispheres, nor the surface
        core = fill(held, voxel_mm) * cerebrum
        necrosis, enhancing = self._inner(x, y, z, held, core, voxel_mm)
        seat = (brain.shares["white"][near] + 0.5 * brain.shares["deep"][near]) * cerebrum
        oedema, wetness = self._oedema(x, y, z, outline, brain.pial[near])
        oedema = oedema * seat * (1 - core)
        shares = {
            "necrosis": necrosis,
            "solid": core - necrosis - enhancing,
            "enhancing": enhancing,
            "oedema": oedema,
        }
        whole = {name: _scatter(near, share, smooth.size) for name, share in shares.items()}
        return Lesion(whole, _scatter(near, wetness, smooth.size), _labels(whole))

    def _inner(self, x: Floats, y: Floats, z: Floats, held: Floats, core: Floats, voxel_mm: float) -> tuple[Floats, Floats]:
        """Necrosis below a rim of varying thickness (a few cysts where nothing enhances much), and the rim's leaking parts."""
        uneven = self.rim.at(x, y, z)
        if self.kind in ("none", "sparse"):
            necrosis = core * fill(held - 4.0, voxel_mm) * fill(6.0 * (uneven - 1.0), voxel_mm)
        else:
            necrosis = core * fill(held - self.rim_mm * np.exp(0.55 * uneven), voxel_mm)
        if self.kind == "none":
            return necrosis, np.zeros_like(core)
        return necrosis, (core - necrosis) * fill(5.0 * (self.leak.at(x, y, z) + self.enhancement), max(voxel_mm, 1.5))

    def _oedema(self, x: Floats, y: Floats, z: Floats, outline: Floats, pial: Floats) -> tuple[Floats, Floats]:
        """Share of white matter that is oedematous, and its wetness: far in deep white matter, hardly into gyri."""
        across = np.clip(-np.sign(self.foci[0].centre[0]) * x, 0, None)
        distance = np.clip(-outline, 0, None) + 1.5 * across  # the way to the other side leads through the corpus callosum
        conduct = 0.45 + 0.55 * np.clip((pial - 3.0) / 7.0, 0, 1)
        depth = self.oedema_mm * conduct * (1 + 0.30 * self.fingers.at(x, y, z)) - distance
        wetness = np.clip(depth / (0.6 * self.oedema_mm + 1), 0, 1)
        return fill(depth, _OEDEMA_EDGE_MM), np.asarray(wetness, dtype=np.float32)


def draw_tumour(rng: np.random.Generator, anatomy: Anatomy) -> Tumour:
    """Draw a tumour into the white matter of a brain."""
    kind = str(rng.choice(list(_KINDS), p=[share for share, _, _ in _KINDS.values()]))
    _, rims, enhancements = _KINDS[kind]
    radius = float(np.clip(19.0 * np.exp(0.30 * rng.standard_normal()), 9.0, 34.0))
    first = _focus(rng, _place(rng, anatomy, radius), radius)
    second = _focus(rng, _place(rng, anatomy, 0.4 * radius, near=first), float(rng.uniform(0.3, 0.55)) * radius)
    return Tumour(
        kind=kind,
        foci=(first, second) if rng.uniform() < _SECOND_FOCUS else (first,),
        rim_mm=max(2.0, float(rng.uniform(*rims)) * radius),
        enhancement=float(rng.uniform(*enhancements)),
        oedema_mm=float(np.clip(19.0 * np.exp(0.45 * rng.standard_normal()), 5.0, 40.0)),
        push=float(rng.uniform(0.15, 0.5)),
        shape=smooth_field(rng, 45.0),
        detail=smooth_field(rng, 14.0),
        rim=smooth_field(rng, 26.0),
        leak=smooth_field(rng, 28.0),
        fingers=smooth_field(rng, 22.0),
    )


def _focus(rng: np.random.Generator, centre: tuple[float, float, float], radius: float) -> Focus:
    stretch = np.exp(0.16 * rng.standard_normal(3))
    radii = radius * stretch / np.prod(stretch) ** (1 / 3)
    return Focus(centre, (float(radii[0]), float(radii[1]), float(radii[2])))


def _place(rng: np.random.Generator, anatomy: Anatomy, radius: float, near: Focus | None = None) -> tuple[float, float, float]:
    """A centre in the white matter of the cerebrum, deep enough for most of the core; for a satellite, beside `near`."""
    x, y, z = (rng.uniform(-reach, reach, 3000).astype(np.float32) for reach in (60.0, 75.0, 60.0))
    brain = anatomy.at(x, y, z, 2.0)
    fitness = brain.shares["white"] * brain.cerebrum * (brain.brain > 0) * (z > -25) * (np.abs(x) > 10)
    fitness = fitness * np.exp(-(((brain.inside - 0.9 * radius) / 8.0) ** 2))
    if near is not None:
        offsets = [(c - m) for c, m in zip((x, y, z), near.centre, strict=True)]
        distance = np.sqrt(sum(offset**2 for offset in offsets))
        fitness = fitness * (x * near.centre[0] > 0) * np.exp(-(((distance - near.radius - radius - 8.0) / 6.0) ** 2))
    best = int(np.argmax(fitness * rng.uniform(0.5, 1.0, x.size)))
    return float(x[best]), float(y[best]), float(z[best])


def _scatter(places: NDArray[np.intp], values: Floats, size: int) -> Floats:
    whole = np.zeros(size, dtype=np.float32)
    whole[places] = values
    return whole


def _labels(shares: Mapping[str, Floats]) -> NDArray[np.uint8]:
    core = shares["necrosis"] + shares["solid"]
    healthy = 1 - core - shares["enhancing"] - shares["oedema"]
    largest = np.argmax([healthy, core, shares["enhancing"], shares["oedema"]], axis=0)
    return np.asarray(np.array([0, 1, 4, 2])[largest], dtype=np.uint8)
