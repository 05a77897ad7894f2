"""What chest and abdomen share: skin, fat, muscle, ribs and spine around a cavity, and how the patient lies in the scanner.

Coordinates are mm in the body: x to the patient's right, y to anterior, z to superior. Cross-sections are superellipses whose
half-axes are profiles along z. Sizes are those of an adult as any atlas of sectional anatomy shows them, rounded.

All ribs are one formula. On the surface of the cage, `round` runs from 0 at the spine to 1 at the sternum; a rib sinks by about
eight centimetres on that way and its cartilage rises again, so a rib is where (z + sinking) is near a multiple of the pitch. An
axial slice therefore cuts several ribs, each at its own place, as it does in patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modistill.phantom.noise import Axes, Field, Floats, Reach, smooth_field
from modistill.phantom.shapes import Canvas, ellipsoid, sheet, superellipse, union

__all__ = ["REACH_MM", "Form", "Pose", "Trunk", "diaphragm", "draw_pose", "draw_trunk"]

REACH_MM: Reach = (215.0, 175.0, 125.0)  # of fields: holds the trunk, however it is turned

Profile = tuple[tuple[float, float], ...]
"""z and a length in mm at some levels, linear in between."""

_PLANES_MM = 48.0  # distance of the fat planes between muscles
_SKIN_MM = 1.8
_SINK_MM, _RISE_MM = 85.0, 40.0  # of a rib on its way to the front, and of its cartilage from there on


@dataclass(frozen=True)
class Pose:
    """How the body lies in the grid: turned, shifted, of its own size, and bent a little so that no two sides are equal.

    Attributes:
        turn: (3, 3) rotation of the body.
        shift_mm: of the body against the middle of the grid.
        scale: size along x, y, z, about 1.
        warp: three fields that bend everything by `warp_mm`.
    """

    turn: Floats
    shift_mm: tuple[float, float, float]
    scale: tuple[float, float, float]
    warp: tuple[Field, Field, Field]
    warp_mm: float

    def into_body(self, axes: Axes) -> tuple[Floats, Floats, Floats]:
        """Where in the body the points of a grid lie: three arrays (D, H, W)."""
        grid = np.meshgrid(*[axis - shift for axis, shift in zip(axes, self.shift_mm, strict=True)], indexing="ij", sparse=True)
        body = []
        for row, scale, field in zip(self.turn, self.scale, self.warp, strict=True):
            turned = sum(weight * c for weight, c in zip(row, grid, strict=True))
            body.append(np.asarray(turned / scale + self.warp_mm * field.on(axes), dtype=np.float32))
        return body[0], body[1], body[2]


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose: some degrees and millimetres off centre, size varying by 4 %."""
    roll, tilt, lean = np.deg2rad((5.0, 3.0, 2.0) * rng.uniform(-1, 1, 3))
    around_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    around_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    around_y = np.array([[np.cos(lean), 0, np.sin(lean)], [0, 1, 0], [-np.sin(lean), 0, np.cos(lean)]])
    shift = rng.uniform(-1, 1, 3) * (5.0, 5.0, 8.0)
    scale = 1 + 0.04 * rng.standard_normal(3).clip(-1.5, 1.5)
    first, second, third = (smooth_field(rng, 130.0, reach_mm=REACH_MM) for _ in range(3))
    return Pose(
        turn=around_z @ around_x @ around_y,
        shift_mm=(float(shift[0]), float(shift[1]), float(shift[2])),
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        warp=(first, second, third),
        warp_mm=float(rng.uniform(2.0, 4.5)),
    )


@dataclass(frozen=True)
class Form:
    """The shape of a region of the trunk, common to all patients.

    Attributes:
        cage: half-width, half-depth and middle (y) of the cavity inside ribs or abdominal muscles, along z.
        wall: the same of the outer surface of the muscles.
        spine: y of the middle of the vertebral bodies, along z.
        pitch_mm: height of a vertebra with its disc.
        vertebra: half-width and half-depth of its body.
        rib_pitch_mm: distance of neighbouring ribs.
        lowest_rib_mm: z at the spine of the lowest rib.
    """

    cage: tuple[Profile, Profile, Profile]
    wall: tuple[Profile, Profile, Profile]
    spine: Profile
    pitch_mm: float
    vertebra: tuple[float, float]
    rib_pitch_mm: float
    lowest_rib_mm: float


@dataclass(frozen=True)
class Trunk:
    """One patient's trunk around the cavity.

    Attributes:
        form: of the region.
        fat_mm: thickness of the fat below the skin at the sides, which is what differs most between patients.
        breasts: whether there are breasts.
        phase: where along z, in parts of their pitch, vertebrae and ribs lie.
        planes: field whose zero sheets are the fat planes between muscles.
    """

    form: Form
    fat_mm: float
    breasts: bool
    phase: tuple[float, float]
    planes: Field

    def cage(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Depth in mm inside the cavity, from the inner surface of its wall."""
        width, depth, middle = (_along(z, profile) for profile in self.form.cage)
        return superellipse(x, y - middle, width, depth, 2.3)

    def outline(self, x: Floats, y: Floats, z: Floats, fat: float = 1.0) -> Floats:
        """Depth in mm below the skin; with `fat` 0, below the outer surface of the muscles."""
        width, depth, middle = (_along(z, profile) for profile in self.form.wall)
        thick = fat * self.fat_mm
        skin = superellipse(x, y - middle, width + thick, depth + 0.7 * thick, 2.5)
        if self.breasts and fat > 0:
            place = (76.0, 0.0, -12.0), (62.0, 20.0 + 0.9 * thick, 62.0)
            skin = union(skin, ellipsoid(np.abs(x), y - middle - 0.88 * depth, z, *place), softness=7.0)
        return skin

    def paint(self, canvas: Canvas, axes: Axes) -> None:
        """Skin, fat, muscles and bones; the cavity is left full of fat.

        Args:
            canvas: full of air.
            axes: of the canvas in the grid, for the fields.
        """
        x, y, z = canvas.x, canvas.y, canvas.z
        skin, cage = self.outline(x, y, z), self.cage(x, y, z)
        canvas.paint("muscle", skin)
        canvas.paint("fat", skin - _SKIN_MM)
        canvas.paint("muscle", self.outline(x, y, z, fat=0.0))
        canvas.paint("fat", 0.8 - sheet(self.planes.on(axes), _PLANES_MM), over=("muscle",), amount=0.6)
        self._ribs(canvas, cage)
        canvas.paint("fat", cage)
        self._spine(canvas)

    def rib_round(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """How far around the cavity a point lies: 0 at the spine, 1 at the sternum."""
        width, depth, middle = (_along(z, profile) for profile in self.form.cage)
        return np.asarray(np.arctan2(np.abs(x) / width, (middle - y) / depth) / np.pi, dtype=np.float32)

    def _ribs(self, canvas: Canvas, cage: Floats) -> None:
        """Bone with marrow, and cartilage in front: ellipses in the wall, 9 mm thick and 14 mm high."""
        along = self.rib_round(canvas.x, canvas.y, canvas.z)
        sinking = _SINK_MM * np.minimum(along, 0.7) / 0.7 - _RISE_MM * np.clip(along - 0.7, 0, None) / 0.3
        height = canvas.z + sinking - self.form.lowest_rib_mm
        pitch = self.form.rib_pitch_mm
        number = np.maximum(np.round(height / pitch - self.phase[1]), 0)
        off = (height / pitch - self.phase[1] - number) * pitch
        level = np.hypot(off / 7.0, (cage + 6.0) / 4.6)
        reach = np.minimum(0.38 + 0.13 * number, 0.93)  # the lowest ribs float
        rib = np.where((np.abs(canvas.x) > 14) & (along < reach), (1 - level) * 4.6, -9).astype(np.float32)
        front = along > 0.78
        canvas.paint("cartilage", np.where(front, rib, -9).astype(np.float32))
        bone = np.where(front, -9, rib).astype(np.float32)
        canvas.paint("bone", bone)
        canvas.paint("marrow", bone - 1.3)

    def _spine(self, canvas: Canvas) -> None:
        """Vertebral bodies with marrow, discs, arches, processes, and the cord in its canal."""
        reach = max(y for _, y in self.form.spine)
        part = canvas.part((-48.0, -175.0, -200.0), (48.0, reach + 40.0, 200.0))
        if not part.x.size:
            return
        x, z = part.x, part.z
        y = part.y - _along(z, self.form.spine)
        half_width, half_depth = self.form.vertebra
        pitch = self.form.pitch_mm
        off = _wrap(z / pitch - self.phase[0]) * pitch
        body = superellipse(x, y, half_width, half_depth, 2.5)
        disc = 0.5 * pitch - 2.0 - np.abs(off)
        part.paint("muscle", body + 4.0)
        part.paint("disc", body)
        part.paint("bone", np.minimum(body, disc))
        part.paint("marrow", np.minimum(body, disc) - 1.2)
        back = y + half_depth + 9.0  # 0 in the middle of the canal
        lamina = np.minimum(13.0 - np.hypot(x, back), 8.0 - np.abs(off))
        process = np.minimum(3.0 - np.abs(x), 6.0 - np.abs(_wrap((z - 0.6 * (back + 12)) / pitch - self.phase[0]) * pitch))
        process = np.minimum(process, np.minimum(-back - 10.0, back + 24.0))
        wing = 4.2 - np.hypot(back + 1.0 + 0.35 * (np.abs(x) - 10.0), off)
        wing = np.minimum(wing, np.minimum(np.abs(x) - 9.0, 36.0 - np.abs(x)))
        arch = np.max([lamina, process, wing], axis=0)
        part.paint("bone", arch)
        part.paint("marrow", arch - 2.0)
        canal = 8.5 - np.hypot(x, back)
        part.paint("fluid", canal)
        part.paint("cord", canal - 3.5)


def diaphragm(x: Floats, y: Floats, tops: tuple[float, float]) -> Floats:
    """Height (z, mm) of the upper surface of the diaphragm, with the tops of its right and left dome.

    The lungs reach deepest behind and at the sides.
    """
    domes = []
    for side, top in zip((1, -1), tops, strict=True):
        away = ((x - side * 58) / 82) ** 2 + ((y - 14) / 92) ** 2
        domes.append(top - 74 * away**1.3)
    return np.asarray(np.max(domes, axis=0), dtype=np.float32)


def draw_trunk(rng: np.random.Generator, form: Form) -> Trunk:
    """Draw a patient: thin or stout, man or woman."""
    return Trunk(
        form=form,
        fat_mm=float(np.clip(14.0 * np.exp(0.40 * rng.standard_normal()), 5.0, 24.0)),
        breasts=bool(rng.uniform() < 0.5),
        phase=(float(rng.uniform()), float(rng.uniform())),
        planes=smooth_field(rng, _PLANES_MM, reach_mm=REACH_MM),
    )


def _along(z: Floats, profile: Profile) -> Floats:
    levels, lengths = zip(*profile, strict=True)
    return np.asarray(np.interp(z, levels, lengths), dtype=np.float32)


def _wrap(turns: Floats) -> Floats:
    """Distance to the nearest whole number, with its sign."""
    return np.asarray(turns - np.round(turns), dtype=np.float32)
