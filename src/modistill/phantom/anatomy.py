"""A coarse brain from formulas: hull, folded cortex, white matter, deep grey matter, ventricles, cerebellum, brainstem.

Every structure is a signed depth in mm (positive inside), evaluated at points rather than on a grid, and turned into tissue
fractions by asking how far a voxel lies inside; so partial volume comes out right at any voxel size. Coordinates are mm from
the centre of the brain: x to the patient's right, y to anterior, z to superior (RAS). The positions and sizes are those of an
average adult brain as any atlas of anatomy gives them, rounded.

The cortex folds because sulci are the zero sheets of a band-limited random field, cut to a depth of one to two centimetres:
grey matter lines the hull and both sides of every sheet, CSF fills the sheet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from modistill.phantom.noise import Field, Floats, smooth_field
from modistill.phantom.shapes import ellipsoid, fill, move, sheet, tube, union

__all__ = ["Anatomy", "Tissues", "draw_anatomy"]

_FOLD_MM, _DETAIL_MM = 25.0, 16.0  # two gyri
_VESSEL_MM = 18.0
_DEEP = {  # centre and radii in mm, one side: |x|, y, z
    "thalamus": ((10.5, -14.0, 5.0), (8.5, 14.0, 9.0)),
    "putamen": ((26.0, 4.0, 2.0), (5.0, 16.0, 10.0)),
    "pallidum": ((20.0, 0.0, -1.0), (4.0, 9.0, 6.0)),
}
_CAUDATE = ((14.0, 25.0, 3.0, 5.5), (17.0, 8.0, 14.0, 4.5), (20.0, -12.0, 20.0, 2.5))  # |x|, y, z, radius
_VENTRICLE = (  # the lateral ventricle's course from the frontal horn through the atrium to the temporal horn
    ((8.0, 33.0, 2.0, 3.0), (8.5, 18.0, 11.0, 5.0), (9.5, -2.0, 18.0, 4.5), (14.0, -25.0, 18.0, 5.0), (23.0, -40.0, 9.0, 7.0)),
    ((23.0, -40.0, 9.0, 7.0), (22.0, -64.0, 5.0, 2.0)),
    ((23.0, -40.0, 9.0, 6.0), (33.0, -28.0, -8.0, 3.0), (32.0, -6.0, -19.0, 2.0)),
)


@dataclass(frozen=True)
class Tissues:
    """What lies at each of N points.

    Attributes:
        brain: depth in mm inside what a skull-stripped image shows (positive inside).
        shares: tissue -> fraction (N,): csf, grey, white, deep, vessel (and dura) and choroid; they add up to one.
        inside: depth in mm below the outer surface and the fissures between the hemispheres, sulci ignored.
        pial: depth in mm below the nearest surface with sulci: small in the cortex, large in the white matter.
        cerebrum: 1 where the point belongs to the cerebrum, else 0.
    """

    brain: Floats
    shares: Mapping[str, Floats]
    inside: Floats
    pial: Floats
    cerebrum: Floats


@dataclass(frozen=True)
class Anatomy:
    """One patient's healthy brain: numbers and random fields drawn once, evaluated at any points.

    Attributes:
        scale: size of the head along x, y, z, about 1.
        ventricle: factor of the ventricles' radii; grows with age.
        atrophy_mm: half the width of a sulcus, and of the CSF below the skull.
        cortex_mm: thickness of the grey ribbon.
        warp: three fields that bend everything by `warp_mm`, so that the sides differ.
        folds, details: fields whose zero sheets are the sulci; `details` for the shallow ones.
        relief: field that makes some sulci deeper than others.
        vessels: two fields; vessels run where both are zero.
    """

    scale: tuple[float, float, float]
    ventricle: float
    atrophy_mm: float
    cortex_mm: float
    warp: tuple[Field, Field, Field]
    folds: Field
    details: Field
    relief: Field
    vessels: tuple[Field, Field]
    warp_mm: float = 2.0

    def hull(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Depth in mm below the brain's outer surface, to within the bend of a few mm: what a mass cannot push away."""
        x, y, z = (c / s for c, s in zip((x, y, z), self.scale, strict=True))
        side = np.abs(x)
        return union(np.maximum(_cerebrum(side, y, z), _temporal(side, y, z)), _cerebellum(side, y, z), _stem(side, y, z))

    def at(self, x: Floats, y: Floats, z: Floats, voxel_mm: float) -> Tissues:
        """Tissues at points (N,) for voxels of `voxel_mm`."""
        x, y, z = self._bend(*(c / s for c, s in zip((x, y, z), self.scale, strict=True)))
        side = np.abs(x)
        cerebrum = np.maximum(_cerebrum(side, y, z), _temporal(side, y, z))
        cerebellum, stem = _cerebellum(side, y, z), _stem(side, y, z)
        inside = np.minimum(cerebrum - self.atrophy_mm, _fissure(side, y, z))
        pial = np.minimum(inside, self._sulci(x, y, z, side, inside))
        pial = np.maximum(pial, np.minimum(cerebellum - 0.7, _folia(side, y, z, cerebellum)))
        pial = np.maximum(pial, stem + np.where(stem > 0, 4.0, 0.0))  # white to its surface
        depths = union(cerebrum, cerebellum, stem), pial, self._ventricles(side, y, z), _deep_grey(side, y, z)
        above = (cerebrum >= np.maximum(cerebellum, stem)).astype(np.float32)
        shares = self._shares(*depths, _choroid(side, y, z), above, voxel_mm)
        move(shares, "csf", "vessel", self._vessel_share(x, y, z, depths[0], shares["csf"], voxel_mm))
        return Tissues(depths[0], shares, np.maximum(inside, cerebellum), pial, above)

    def _shares(
        self, brain: Floats, pial: Floats, ventricle: Floats, deep: Floats, choroid: Floats, above: Floats, voxel_mm: float
    ) -> dict[str, Floats]:
        """Depths -> fractions: each inner structure takes its share of the outer one."""
        solid = fill(pial, voxel_mm) * (1 - fill(ventricle, voxel_mm))
        white = fill(pial - self.cortex_mm, voxel_mm) * solid
        shares: dict[str, Floats] = {"csf": 1 - solid, "grey": solid - white, "white": white}
        move(shares, "white", "deep", fill(deep, voxel_mm) * white * above)
        move(shares, "csf", "choroid", 0.6 * fill(choroid, voxel_mm) * fill(ventricle, voxel_mm))
        return shares

    def _vessel_share(self, x: Floats, y: Floats, z: Floats, brain: Floats, csf: Floats, voxel_mm: float) -> Floats:
        """Vessels in the CSF over and between the gyri, and patches of dura left by skull stripping."""
        share = np.zeros_like(csf)
        (there,) = np.nonzero((csf > 0.02) & (brain < 25))
        first, second = (field.at(x[there], y[there], z[there]) for field in self.vessels)
        vessel = fill(0.7 - np.hypot(sheet(first, _VESSEL_MM), sheet(second, _VESSEL_MM)), voxel_mm)
        dura = 0.6 * fill(1.0 - np.abs(brain[there] - 0.5), voxel_mm) * np.clip(first, 0, 1)
        share[there] = np.maximum(vessel, dura)
        return share

    def _bend(self, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        shift = [self.warp_mm * field.at(x, y, z) for field in self.warp]
        return x + shift[0], y + shift[1], z + shift[2]

    def _sulci(self, x: Floats, y: Floats, z: Floats, side: Floats, inside: Floats) -> Floats:
        """Distance to the nearest sulcus, which ends at a depth of its own; large below all sulci."""
        sulci = np.full_like(inside, 99.0)
        (there,) = np.nonzero(np.abs(inside) < 40)
        x, y, z, side, inside = x[there], y[there], z[there], side[there], inside[there]
        away = np.sqrt((side - 22.0) ** 2 + y**2 + (z - 4.0) ** 2) + 1.0
        # Read the field further out the deeper the point lies: sheets then stand upright on the surface.
        stretch = 1 + 0.6 * np.clip(inside, 0, 30) / away
        px, py, pz = x * stretch, y * stretch, z * stretch
        relief = self.relief.at(px, py, pz)
        depth_mm = 15.5 + 4.0 * relief
        main = sheet(self.folds.at(px, py, pz), _FOLD_MM) - self.atrophy_mm + np.clip(inside - depth_mm, 0, None)
        fine = sheet(self.details.at(px, py, pz), _DETAIL_MM) - 0.5 * self.atrophy_mm
        fine = fine + np.clip(inside - 0.35 * depth_mm, 0, None)
        sulci[there] = np.min([main, fine, _sylvian(side, y, z + 3.0 * relief)], axis=0)
        return sulci

    def _ventricles(self, side: Floats, y: Floats, z: Floats) -> Floats:
        lateral = np.max([tube(side, y, z, course, self.ventricle) for course in _VENTRICLE], axis=0)
        third = ellipsoid(side, y, z, (0.0, -9.0, 1.0), (2.0 * self.ventricle, 13.0, 10.0))
        fourth = ellipsoid(side, y, z, (0.0, -44.0, -36.0), (6.0, 4.0, 9.0))
        return np.asarray(np.max([lateral, third, fourth], axis=0), dtype=np.float32)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient: head size varies by 3 %, ventricles by a factor of two, sulci between young and old."""
    age = float(rng.uniform())
    scale = tuple(float(value) for value in 1 + 0.03 * rng.standard_normal(3).clip(-1.5, 1.5))
    return Anatomy(
        scale=(scale[0], scale[1], scale[2]),
        ventricle=0.75 + 0.5 * age + 0.1 * float(rng.uniform()),
        atrophy_mm=0.3 + 0.5 * age,
        cortex_mm=3.0 - 0.4 * age,
        warp=(smooth_field(rng, 110.0), smooth_field(rng, 110.0), smooth_field(rng, 110.0)),
        folds=smooth_field(rng, _FOLD_MM),
        details=smooth_field(rng, _DETAIL_MM),
        relief=smooth_field(rng, 60.0),
        vessels=(smooth_field(rng, _VESSEL_MM), smooth_field(rng, _VESSEL_MM)),
    )


def _cerebrum(side: Floats, y: Floats, z: Floats) -> Floats:
    """Egg-shaped seen from above (wider behind), domed, with a flat base."""
    wide = side / (1 - 0.08 * np.tanh(y / 55.0))
    y = y * (1 - 0.10 * (side / 67.0) ** 2)  # blunt poles
    flat = np.where(z > 0, z, z * 70.0 / 30.0)
    return ellipsoid(wide, y, flat, (0.0, 0.0, 0.0), (67.0, 86.0, 70.0))


def _temporal(side: Floats, y: Floats, z: Floats) -> Floats:
    return ellipsoid(side, y, z + 0.12 * y, (42.0, 0.0, -24.0), (22.0, 46.0, 19.0))


def _cerebellum(side: Floats, y: Floats, z: Floats) -> Floats:
    return ellipsoid(side, y, z, (19.0, -53.0, -39.0), (34.0, 30.0, 23.0))


def _stem(side: Floats, y: Floats, z: Floats) -> Floats:
    """Midbrain to medulla, with the pons as a bulge in front."""
    return np.maximum(
        tube(side, y, z, ((0.0, -20.0, -6.0, 13.0), (0.0, -32.0, -68.0, 9.0)), 1.0),
        ellipsoid(side, y, z, (0.0, -19.0, -36.0), (16.0, 12.0, 13.0)),
    )


def _fissure(side: Floats, y: Floats, z: Floats) -> Floats:
    """Distance to the cleft between the hemispheres; large where corpus callosum and thalamus join them."""
    bridge = 27.0 * (1 - np.hypot((y + 6.0) / 40.0, z / 27.0))
    return np.asarray(side - 0.8 + 2.5 * np.clip(bridge, 0, None), dtype=np.float32)


def _sylvian(side: Floats, y: Floats, z: Floats) -> Floats:
    """Distance to the cleft above the temporal lobe: open to the side, rising backwards, ending at the insula."""
    cleft = np.abs(z + 12.0 + 0.25 * y) - 1.2
    return np.asarray(cleft + np.clip(34.0 - side, 0, None) + np.clip(-38.0 - y, 0, None), dtype=np.float32)


def _folia(side: Floats, y: Floats, z: Floats, depth: Floats) -> Floats:
    """The cerebellum's leaves: thin sheets that fan out from the fourth ventricle."""
    up, back = z + 40.0, y + 40.0
    radius = np.sqrt(up**2 + back**2 + (0.5 * side) ** 2)
    fan = np.abs(np.sin(8.0 * np.arctan2(up, -back + 1e-3))) * radius / 8.0
    return np.asarray(fan + 0.8 + np.clip(depth - 9.0, 0, None), dtype=np.float32)


def _deep_grey(side: Floats, y: Floats, z: Floats) -> Floats:
    nuclei = [ellipsoid(side, y, z, centre, radii) for centre, radii in _DEEP.values()]
    return np.asarray(np.max([*nuclei, tube(side, y, z, _CAUDATE, 1.0)], axis=0), dtype=np.float32)


def _choroid(side: Floats, y: Floats, z: Floats) -> Floats:
    return tube(side, y, z, ((13.0, -20.0, 16.0, 1.5), (22.0, -38.0, 6.0, 3.0)), 1.0)
