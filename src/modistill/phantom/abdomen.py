"""An abdomen from formulas: liver, kidneys and spleen among stomach, bowel, pancreas and great vessels.

Organs are ellipsoids and tubes with rough surfaces; what is painted later displaces what was there, so the liver gives way to
the kidney's capsule of fat as it does in patients. Kidneys have a cortex, a medulla in pyramids and a sinus of fat; the liver
has branching vessels that belong to it. Loops of small bowel are random walks.

No organ is told by its grey value alone. Liver and pancreas have the same T1 and T2, spleen and kidney nearly; T1 tells liver
from spleen, fat-suppressed T2 tells organs from fat and muscle, and bowel, whatever it holds, looks like any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from modistill.phantom.noise import Axes, Field, Floats, smooth_field
from modistill.phantom.shapes import Canvas, Course, Place, ellipsoid, tube, union
from modistill.phantom.trunk import REACH_MM, Form, Trunk, diaphragm, draw_trunk
from modistill.phantom.vessels import grow_tree, paint_tree

__all__ = ["Abdomen", "draw_abdomen"]

_FORM = Form(
    cage=(
        ((-120, 122), (-40, 124), (20, 126), (70, 129), (120, 124)),
        ((-120, 68), (-40, 73), (20, 79), (70, 84), (120, 84)),
        ((-120, 10), (0, 5), (60, -2), (120, -5)),
    ),
    wall=(
        ((-120, 141), (-40, 140), (20, 143), (70, 147), (120, 147)),
        ((-120, 92), (0, 97), (60, 103), (120, 105)),
        ((-120, -6), (0, -8), (120, -9)),
    ),
    spine=((-120, -44), (-50, -45), (20, -52), (120, -64)),
    pitch_mm=34.0,
    vertebra=(22.0, 16.0),
    rib_pitch_mm=28.0,
    lowest_rib_mm=12.0,
)
_AORTA: Course = ((-4, -17, -130, 8.5), (-7, -22, 0, 10), (-13, -33, 130, 11.5))
_CAVA: Course = ((20, -16, -130, 10), (21, -17, 10, 11), (28, -6, 70, 12.5), (28, 4, 130, 12.5))
_PSOAS: tuple[Course, ...] = tuple(((s * 29, -44, 38, 6), (s * 38, -42, -50, 17), (s * 46, -36, -130, 22)) for s in (1, -1))
_CRURA: tuple[Course, ...] = tuple(((s * 12, -22, -5, 4), (s * 17, -26, 60, 5), (s * 24, -10, 95, 4)) for s in (1, -1))
_STOMACH: Course = ((-58, -8, 78, 25), (-66, 18, 52, 29), (-48, 42, 14, 23), (-8, 48, -4, 15), (20, 36, 2, 11))
_PANCREAS: Course = ((32, 14, -14, 13), (10, 12, 0, 10), (-22, 4, 10, 10), (-58, -10, 26, 9), (-78, -18, 36, 7))
_DUODENUM: Course = ((22, 34, 2, 11), (42, 18, -8, 12), (44, 2, -40, 12), (14, 0, -50, 11), (-16, 6, -42, 11))
_COLON: Course = (
    *((90, 4, -130, 24), (94, 8, -62, 22), (82, 42, -46, 19), (30, 64, -58, 17), (-40, 62, -52, 17)),
    *((-90, 26, 2, 17), (-98, -6, -20, 14), (-98, -8, -130, 14)),
)
_GALLBLADDER: tuple[Place, Place] = (36, 40, -12), (13, 22, 15)
_HEPATIC_VEINS: tuple[Course, ...] = (
    ((28, 2, 86, 7), (62, -12, 74, 6), (96, -14, 50, 4)),
    ((28, 4, 86, 7), (46, 28, 68, 5.5), (60, 44, 40, 4)),
    ((26, 6, 84, 6), (6, 30, 72, 5), (-14, 44, 56, 3)),
)
_PORTAL_VEIN: Course = ((12, 6, 4, 8), (30, 8, 22, 8), (44, 8, 32, 7.5))
_HEART: tuple[Place, Place] = (-20, 32, 124), (54, 44, 40)  # its lower end
_LOOPS = 8


@dataclass(frozen=True)
class Kidney:
    """One kidney.

    Attributes:
        centre, radii: mm.
        hilum: x from the centre towards the midline at which the sinus opens.
        phase: of the pyramids.
    """

    centre: Place
    radii: Place
    hilum: float
    phase: float


@dataclass(frozen=True)
class Abdomen:
    """One patient's abdomen: numbers and fields drawn once, evaluated at any points.

    Attributes:
        trunk: wall and spine.
        dome_mm: z of the tops of the diaphragm, right and left.
        liver: centre and radii of right and left lobe.
        spleen: centre and radii.
        kidneys: right and left.
        moved: shift in mm of the other organs, and size of their tubes, about 1.
        gas: y above which the bowel holds gas; the patient lies on the back.
        capsule_mm: fat around the kidneys.
        rough: field that makes surfaces uneven, in mm times `rough_mm`.
        portal: branches of the portal vein.
        loops: small bowel.
    """

    trunk: Trunk
    dome_mm: tuple[float, float]
    liver: tuple[tuple[Place, Place], tuple[Place, Place]]
    spleen: tuple[Place, Place]
    kidneys: tuple[Kidney, Kidney]
    moved: tuple[Place, float]
    gas: float
    capsule_mm: float
    rough: Field
    portal: tuple[Course, ...]
    loops: tuple[Course, ...]
    rough_mm: float = 3.5

    def paint(self, canvas: Canvas, axes: Axes) -> None:
        """The whole abdomen on a canvas full of air."""
        self.trunk.paint(canvas, axes)
        x, y, z = canvas.x, canvas.y, canvas.z
        cage = self.trunk.cage(x, y, z)
        above = z - diaphragm(x, y, self.dome_mm)
        inside = np.minimum(cage - 1.5, -3.0 - above)
        rough = self.rough_mm * self.rough.on(axes)
        canvas.paint("lung", np.minimum(cage - 2.0, above), over=("fat", "muscle"))
        canvas.paint("muscle", np.minimum(cage, 1.5 - np.abs(above + 1.5)), over=("fat",))
        heart = np.minimum(ellipsoid(x, y, z, *_HEART), above)
        canvas.paint("muscle", heart, over=("lung",))
        canvas.paint("blood", heart - 9.0, over=("muscle",))
        for course in (*_PSOAS, *_CRURA):
            canvas.tube("muscle", course, over=("fat",))
        self._bowel(canvas, inside)
        self._spleen(canvas, inside, rough)
        self._liver(canvas, inside, rough)
        for kidney in self.kidneys:
            self._kidney(canvas, kidney)
        for course in (_AORTA, _CAVA):
            canvas.tube("blood", course)

    def _liver(self, canvas: Canvas, inside: Floats, rough: Floats) -> None:
        depth = np.minimum(self.liver_depth(canvas.x, canvas.y, canvas.z) + rough, inside)
        canvas.paint("fat", np.minimum(depth + 2.0, inside), over=("gut", "chyme", "stool", "gas", "spleen", "pancreas"))
        canvas.paint("liver", depth)
        canvas.ellipsoid("gut", *_GALLBLADDER)
        centre, radii = _GALLBLADDER
        canvas.ellipsoid("bile", centre, (radii[0] - 2, radii[1] - 2, radii[2] - 2))
        for course in _HEPATIC_VEINS:
            canvas.tube("branch", course, over=("liver",))
        canvas.tube("branch", _PORTAL_VEIN)
        paint_tree(canvas, "branch", self.portal, ("liver",))

    def liver_depth(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Depth in mm inside the liver, as if nothing lay above it."""
        right, left = (ellipsoid(x, y, z, *lobe) for lobe in self.liver)
        return union(right, left, softness=4.0)

    def _spleen(self, canvas: Canvas, inside: Floats, rough: Floats) -> None:
        """A crescent: an ellipsoid less the one that stomach and kidney press into it."""
        (cx, cy, cz), radii = self.spleen
        x, y, z = canvas.x, canvas.y, canvas.z
        pressed = ellipsoid(x, y, z, (cx + 34, cy + 20, cz - 4), (30.0, 42.0, 48.0))
        depth = np.min([ellipsoid(x, y, z, (cx, cy, cz), radii) + 0.6 * rough, -pressed, inside], axis=0)
        canvas.paint("fat", np.minimum(depth + 2.0, inside), over=("gut", "chyme", "stool", "gas", "pancreas"))
        canvas.paint("spleen", depth, over=("fat", "muscle"))

    def _kidney(self, canvas: Canvas, kidney: Kidney) -> None:
        (cx, cy, cz), radii = kidney.centre, kidney.radii
        part = canvas.part((cx - 50, cy - 45, cz - 80), (cx + 50, cy + 45, cz + 80))
        if not part.x.size:
            return
        x, y, z = part.x - 0.25 * (part.z - cz) * np.sign(-cx), part.y, part.z  # upper poles lean to the midline
        depth = ellipsoid(x, y, z, kidney.centre, radii)
        part.paint("fat", np.minimum(depth + self.capsule_mm, self.trunk.cage(part.x, y, z)))
        part.paint("cortex", depth)
        around = np.arctan2(y - cy, x - cx)
        pyramids = np.cos(2 * np.pi * (z - cz) / 19.0 + kidney.phase) + np.cos(3 * around + kidney.phase)
        part.paint("medulla", np.minimum(depth - 6.0, 3.0 * (pyramids + 0.5)), over=("cortex",))
        sinus = ellipsoid(x, y, z, (cx + kidney.hilum, cy + 4, cz), (15.0, 9.0, 26.0))
        part.paint("fat", sinus, over=("cortex", "medulla"))
        part.paint("fluid", sinus - 5.0, over=("fat",), amount=0.7)

    def _bowel(self, canvas: Canvas, inside: Floats) -> None:
        """Pancreas, stomach and bowel, behind each other as they lie."""
        for loop in self.loops:
            self._hollow(canvas, loop, inside, "chyme", 2.2)
        canvas.tube("pancreas", self._course(_PANCREAS))
        self._hollow(canvas, self._course(_DUODENUM), inside, "chyme", 2.5)
        self._hollow(canvas, self._course(_COLON), inside, "stool", 2.5)
        self._hollow(canvas, self._course(_STOMACH), inside, "chyme", 4.0)

    def _hollow(self, canvas: Canvas, course: Course, inside: Floats, content: str, wall: float) -> None:
        """A tube with a wall, what it holds, and gas on top."""
        depth = np.minimum(tube(canvas.x, canvas.y, canvas.z, course), inside)
        canvas.paint("gut", depth, over=("fat", "gut", "chyme", "stool", "pancreas"))
        canvas.paint(content, depth - wall, over=("gut",))
        level = self.gas + (0.0 if content == "stool" else 8.0)
        canvas.paint("gas", np.minimum(depth - wall, canvas.y - level), over=(content,))

    def _course(self, course: Course) -> Course:
        (dx, dy, dz), size = self.moved
        return tuple((x + dx, y + dy, z + dz, size * radius) for x, y, z, radius in course)


def draw_abdomen(rng: np.random.Generator) -> Abdomen:
    """Draw a patient: habitus, and position, size and form of every organ."""

    def about(centre: Place, radii: Place, spread: float = 5.0) -> tuple[Place, Place]:
        """An ellipsoid that lies a few millimetres off, and whose radii vary by 8 % together and 5 % each."""
        moved = rng.uniform(-spread, spread, 3)
        sizes = np.exp(0.08 * rng.standard_normal() + 0.05 * rng.standard_normal(3)).clip(0.8, 1.25)
        (x, y, z), (a, b, c) = np.array(centre) + moved, np.array(radii) * sizes
        return (float(x), float(y), float(z)), (float(a), float(b), float(c))

    trunk = draw_trunk(rng, _FORM)
    right = float(rng.uniform(84, 106))
    liver = about((62, 0, 34), (70, 84, 82)), about((-2, 40, 48), (60, 38, 38), 8.0)
    kidneys = []
    for centre, radii in (((58, -44, -28), (29, 25, 53)), ((-60, -42, -10), (29, 25, 54))):
        place, size = about((float(centre[0]), float(centre[1]), float(centre[2])), radii)
        kidneys.append(Kidney(place, size, -13.0 * float(np.sign(place[0])), float(rng.uniform(0, 2 * np.pi))))
    moved = rng.uniform(-6, 6, 3)
    bare = Abdomen(
        trunk=trunk,
        dome_mm=(right, right - float(rng.uniform(6, 16))),
        liver=liver,
        spleen=about((-92, -32, 50), (34, 54, 54)),
        kidneys=(kidneys[0], kidneys[1]),
        moved=((float(moved[0]), float(moved[1]), float(moved[2])), float(rng.uniform(0.85, 1.12))),
        gas=float(rng.uniform(48, 70)),
        capsule_mm=float(rng.uniform(2.0, 4.0)) + 0.25 * trunk.fat_mm,
        rough=smooth_field(rng, 60.0, reach_mm=REACH_MM),
        portal=(),
        loops=tuple(_loop(rng) for _ in range(_LOOPS)),
    )
    x, y, z = (rng.uniform(low, high, 6000).astype(np.float32) for low, high in ((-70, 130), (-80, 90), (-40, 100)))
    there = np.stack([x, y, z], axis=1)[np.minimum(bare.liver_depth(x, y, z), diaphragm(x, y, bare.dome_mm) - z) > 8]
    return replace(bare, portal=tuple(grow_tree(rng, (44, 8, 32), there[:1200], 6.0, 24)))


def _loop(rng: np.random.Generator) -> Course:
    """A loop of small bowel: a random walk that returns to the lower middle of the cavity."""
    place, corners = np.array([0.0, 30.0, -82.0]), []
    for _ in range(7):
        place = 0.45 * place + rng.uniform((-45, -9, -74), (45, 42, -18))
        corners.append((float(place[0]), float(place[1]), float(place[2]), float(rng.uniform(9, 13))))
    return tuple(corners)
