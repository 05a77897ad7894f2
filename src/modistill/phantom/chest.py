"""A chest from formulas: lungs with their vessels, heart, great vessels, airways, diaphragm, and what lies below it.

The heart and the tubes of the mediastinum lie in a common coat of fat, the smooth union of them all; the lungs fill what is
left of the cage above the diaphragm. Arteries and veins of the lungs grow from the hilum (`vessels`). Fissures are bent planes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from modistill.phantom.noise import Axes, Field, Floats, smooth_field
from modistill.phantom.shapes import Canvas, Course, ellipsoid, superellipse, tube, union
from modistill.phantom.trunk import REACH_MM, Form, Trunk, diaphragm, draw_trunk
from modistill.phantom.vessels import grow_tree, paint_tree

__all__ = ["Chest", "draw_chest"]

_FORM = Form(
    cage=(
        ((-120, 126), (-60, 130), (-20, 127), (30, 112), (60, 93), (85, 68), (110, 40)),
        ((-120, 84), (-30, 84), (20, 76), (55, 63), (85, 46), (110, 28)),
        ((-120, -4), (0, -6), (50, -15), (85, -26), (110, -34)),
    ),
    wall=(
        ((-120, 146), (-20, 149), (30, 151), (70, 155), (120, 155)),
        ((-120, 105), (-20, 106), (40, 101), (80, 90), (120, 76)),
        ((-120, -8), (0, -10), (50, -16), (120, -28)),
    ),
    spine=((-120, -58), (-40, -65), (20, -67), (70, -63), (120, -54)),
    pitch_mm=24.0,
    vertebra=(16.5, 14.0),
    rib_pitch_mm=26.0,
    lowest_rib_mm=-127.0,
)
_TUBES: Mapping[str, Course] = {  # great vessels
    "ascending aorta": ((4, 20, -8, 14), (14, 26, 22, 15), (13, 20, 48, 14), (4, 6, 60, 12.5)),
    "arch": ((4, 6, 60, 12.5), (-12, -16, 63, 12), (-23, -36, 52, 12)),
    "descending aorta": ((-23, -36, 52, 12), (-25, -43, 20, 12), (-20, -43, -40, 11.5), (-10, -38, -120, 11)),
    "pulmonary trunk": ((-14, 36, -8, 14), (-20, 24, 18, 14), (-18, 8, 30, 12)),
    "right pulmonary artery": ((-18, 8, 30, 11), (8, 0, 26, 10), (38, -6, 20, 9)),
    "left pulmonary artery": ((-18, 8, 30, 11), (-34, -8, 32, 10), (-44, -16, 26, 9)),
    "superior vena cava": ((20, 18, 72, 9), (26, 16, 40, 9.5), (27, 14, 0, 10)),
    "left brachiocephalic vein": ((-36, 4, 110, 6), (-14, 16, 84, 6.5), (20, 18, 72, 7)),
    "right brachiocephalic vein": ((36, 0, 110, 6.5), (20, 18, 72, 7.5)),
    "brachiocephalic artery": ((8, 6, 66, 7), (16, 0, 90, 6.5), (22, -6, 118, 5.5)),
    "left carotid artery": ((-6, 0, 68, 4.5), (-13, -6, 118, 4)),
    "left subclavian artery": ((-16, -18, 66, 5.5), (-24, -22, 100, 5), (-40, -20, 118, 5)),
    "inferior vena cava": ((24, -2, -120, 12), (24, 2, -60, 12), (26, 8, -40, 13)),
}
_TRACHEA: Course = ((0, -16, 118, 8.5), (1, -18, 70, 8.5), (2, -22, 42, 9))
_BRONCHI: tuple[Course, ...] = (
    ((2, -22, 42, 7.5), (28, -21, 24, 6.8), (40, -20, 8, 5), (48, -28, -22, 3.2)),
    ((2, -22, 42, 7), (-24, -24, 26, 6), (-42, -22, 12, 5), (-50, -30, -20, 3.2)),
    ((26, -21, 26, 4.6), (46, -20, 42, 3)),
    ((-38, -22, 16, 4.6), (-50, -12, 30, 3)),
)
_OESOPHAGUS: Course = ((-2, -36, 118, 7), (-6, -38, 40, 7), (-8, -32, 0, 7), (-8, -28, -45, 7.5), (-22, -16, -80, 8))
_HEART: Mapping[str, tuple[Course, float]] = {  # cavity with the radius of the outer wall, and the wall's thickness
    "left ventricle": (((-30, 12, -22, 30), (-50, 32, -48, 25), (-62, 42, -58, 15)), 10.0),
    "right ventricle": (((0, 40, -44, 24), (-30, 52, -52, 18), (-46, 54, -58, 12)), 4.5),
    "outflow": (((0, 40, -44, 20), (-12, 46, -24, 17), (-15, 38, -8, 15)), 4.0),
    "right atrium": (((24, 14, -12, 20), (26, 18, -42, 21)), 3.0),
    "left atrium": (((-26, -14, -6, 19), (14, -18, -8, 20)), 3.0),
}
_THICKEST = _HEART["left ventricle"][0]
_HILA = (((38, -6, 20), (34, -14, -2)), ((-44, -16, 26), (-38, -16, -2)))  # right, left: artery, vein
_FISSURES = (  # side, normal and offset of the plane, y where it ends behind: oblique right and left, horizontal right
    (1, (0.1, 0.62, 0.78), 2.0, -200.0),
    (-1, (-0.1, 0.68, 0.73), 6.0, -200.0),
    (1, (0.0, -0.1, 1.0), 2.0, -5.0),
)
_FISSURE_MM = 0.9
_COAT_MM = 1.2  # fat around what lies in the mediastinum
_LOBULE_POINTS = 9  # of 2300 that each tree feeds: where branching ends


@dataclass(frozen=True)
class Chest:
    """One patient's chest without disease: numbers and fields drawn once, evaluated at any points.

    Attributes:
        trunk: wall and spine.
        dome_mm: z of the tops of the diaphragm, right and left: how deeply the patient has breathed in.
        heart: size of the heart, about 1.
        bend: field that bends the fissures.
        vessels: courses in the lungs.
    """

    trunk: Trunk
    dome_mm: tuple[float, float]
    heart: float
    bend: Field
    vessels: tuple[Course, ...]

    def mediastinum(self, x: Floats, y: Floats, z: Floats) -> dict[str, Floats]:
        """Depth in mm inside each organ between the lungs."""
        depths = {name: tube(x, y, z, course) for name, course in _TUBES.items()}
        hearts = [tube(x, y, z, course, self.heart) for course, _ in _HEART.values()]
        depths["heart"] = union(*hearts, softness=8.0)
        depths["trachea"] = np.max([tube(x, y, z, course) for course in (_TRACHEA, *_BRONCHI[:2])], axis=0)
        depths["oesophagus"] = tube(x, y, z, _OESOPHAGUS)
        return depths

    def coat(self, x: Floats, y: Floats, z: Floats, organs: Mapping[str, Floats]) -> Floats:
        """Depth in mm inside the fat that holds the mediastinum together; the lungs lie outside."""
        spine = superellipse(x, y + 68, 20.0, 22.0, 2.5)
        septum = 1.5 + np.clip(-y - 10.0, 0, 20.0) * 0.2 - np.abs(x + 3)
        return np.asarray(np.maximum(union(*organs.values(), spine, softness=3.5) + _COAT_MM, septum), dtype=np.float32)

    def lung(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Depth in mm inside the lungs (points of any shape)."""
        coat = self.coat(x, y, z, self.mediastinum(x, y, z))
        room = np.min([self.trunk.cage(x, y, z) - 0.7, z - diaphragm(x, y, self.dome_mm) - 1.5, -coat], axis=0)
        return np.asarray(room, dtype=np.float32)

    def paint(self, canvas: Canvas, axes: Axes) -> None:
        """The whole chest on a canvas full of air."""
        self.trunk.paint(canvas, axes)
        x, y, z = canvas.x, canvas.y, canvas.z
        cage = self.trunk.cage(x, y, z)
        dome = diaphragm(x, y, self.dome_mm)
        canvas.paint("lung", np.minimum(cage - 0.7, z - dome - 1.5), over=("fat", "muscle"))
        self._flat_bones(canvas, cage)
        self._abdomen(canvas, cage, dome)
        self._fissures(canvas, axes)
        paint_tree(canvas, "blood", self.vessels, ("lung",))
        self._mediastinum(canvas)

    def _flat_bones(self, canvas: Canvas, cage: Floats) -> None:
        """The sternum, and the shoulder blades: plates behind and beside the ribs."""
        level = np.hypot(canvas.x / 19.0, (cage + 7.0) / 6.0)
        sternum = np.where((canvas.y > 0) & (canvas.z > -62), (1 - level) * 6.0, -9).astype(np.float32)
        canvas.paint("bone", sternum)
        canvas.paint("marrow", sternum - 1.3)
        around = self.trunk.rib_round(canvas.x, canvas.y, canvas.z)
        plate = 2.6 - np.abs(cage + 23.0 + 60 * (around - 0.3))
        edge = 120 * np.minimum(around - 0.14, 0.46 - around)
        canvas.paint("bone", np.min([plate, edge, canvas.z - 2.0], axis=0), over=("muscle", "fat"))

    def _abdomen(self, canvas: Canvas, cage: Floats, dome: Floats) -> None:
        """Diaphragm, liver, spleen and stomach."""
        x, y, z = canvas.x, canvas.y, canvas.z
        below = np.minimum(cage, dome - z)
        canvas.paint("muscle", np.minimum(below, 3.0 - below), over=("fat",))
        inside = below - 3.0
        liver = np.maximum(ellipsoid(x, y, z, (56, 4, -100), (92, 92, 78)), ellipsoid(x, y, z, (-18, 40, -92), (60, 40, 46)))
        canvas.paint("liver", np.minimum(inside, liver), over=("fat", "muscle"))
        canvas.paint("spleen", np.minimum(inside, ellipsoid(x, y, z, (-94, -38, -98), (32, 44, 46))), over=("fat",))
        stomach = np.minimum(inside - 2.0, ellipsoid(x, y, z, (-66, 26, -100), (42, 44, 48)))
        canvas.paint("gut", stomach, over=("fat", "muscle"))
        canvas.paint("chyme", stomach - 4.0, over=("gut",))
        canvas.paint("gas", np.minimum(stomach - 4.0, y - 30.0), over=("gut", "chyme"))

    def _fissures(self, canvas: Canvas, axes: Axes) -> None:
        """Sheets thinner than a voxel, spread over its width."""
        bend = 7.0 * self.bend.on(axes)
        thin = min(1.0, _FISSURE_MM / canvas.voxel_mm)
        for side, (a, b, c), offset, behind in _FISSURES:
            away = np.abs(a * canvas.x + b * canvas.y + c * canvas.z - offset + bend)
            sheet = np.min([0.5 * canvas.voxel_mm - away, side * canvas.x, canvas.y - behind], axis=0)
            canvas.paint("muscle", sheet, over=("lung",), amount=thin)

    def _mediastinum(self, canvas: Canvas) -> None:
        part = canvas.part((-100.0, -110.0, -200.0), (75.0, 110.0, 200.0))
        if not part.x.size:
            return
        x, y, z = part.x, part.y, part.z
        organs = self.mediastinum(x, y, z)
        coat = self.coat(x, y, z, organs)
        inside = np.minimum(coat, self.trunk.cage(x, y, z))
        part.paint("fat", inside, over=("lung", "blood"))
        part.paint("fat", organs["heart"] + 3.0, over=("liver", "muscle", "gut", "chyme", "gas"))
        part.paint("heart", organs["heart"])
        for course, wall in _HEART.values():
            chamber = tube(x, y, z, course, self.heart)
            part.paint("blood", chamber - wall, over=("heart",))
            if course is _THICKEST:  # the septum belongs to it
                part.paint("heart", np.minimum(chamber, wall - chamber))
        for name in _TUBES:
            part.paint("blood", organs[name])
        part.paint("gut", organs["oesophagus"])
        part.paint("gas", organs["oesophagus"] - 5.0, amount=0.6)
        part.paint("muscle", organs["trachea"] + 0.8)
        for course in (_TRACHEA, *_BRONCHI):
            part.tube("gas", tuple((cx, cy, cz, r - 1.0) for cx, cy, cz, r in course))


def draw_chest(rng: np.random.Generator) -> Chest:
    """Draw a patient: habitus, breath, heart, fissures, and the trees of vessels."""
    right = float(rng.uniform(-52, -30))
    bare = Chest(
        trunk=draw_trunk(rng, _FORM),
        dome_mm=(right, right - float(rng.uniform(6, 18))),
        heart=float(np.clip(1 + 0.07 * rng.standard_normal(), 0.9, 1.1)),
        bend=smooth_field(rng, 90.0, reach_mm=REACH_MM),
        vessels=(),
    )
    x, y, z = (rng.uniform(-reach, reach, 24000).astype(np.float32) for reach in (130.0, 95.0, 110.0))
    inside = bare.lung(x, y, z) > 2.0
    points = np.stack([x, y, z], axis=1)[inside]
    vessels: list[Course] = []
    for side, roots in zip((1, -1), _HILA, strict=True):
        here = points[side * points[:, 0] > 0][:4600]
        for number, root in enumerate(roots):
            vessels.extend(grow_tree(rng, root, here[number::2], 6.5, _LOBULE_POINTS))
    return replace(bare, vessels=tuple(vessels))
