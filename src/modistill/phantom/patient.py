"""One phantom patient of any body: the registry of bodies, and the door to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from modistill.data.case import Case
from modistill.errors import RecipeError
from modistill.phantom import brain, trunk_patient
from modistill.phantom.brain import HEAD_MM, Patient, phantom_patient, spacing_mm
from modistill.phantom.frame import Shape, case_id, check_numbers
from modistill.phantom.sequences import MODALITIES

__all__ = [
    "BODIES",
    "HEAD_MM",
    "Body",
    "Patient",
    "Shape",
    "case_id",
    "check_request",
    "named_body",
    "phantom_case",
    "phantom_patient",
    "spacing_mm",
]

Spacing: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Body:
    """A part of the body that phantoms show.

    Attributes:
        modalities: what a case has.
        convention: of its labels (`modistill.data.naming.conventions`).
        shape: (D, H, W) of a grid, if nobody asks for another.
        made_of: where anatomy and contrast come from, one sentence.
        files: what the files hold, for the cohort's README.
        spacing_mm: shape -> voxel size.
        check_shape: refuses a shape that is too coarse.
        case: makes a patient.
    """

    modalities: tuple[str, ...]
    convention: str
    shape: Shape
    made_of: str
    files: str
    spacing_mm: Callable[[Shape], Spacing]
    check_shape: Callable[[Shape], None]
    case: Callable[[int, int, Shape], Case]


def _cubic(shape: Shape) -> Spacing:
    edge = spacing_mm(shape)
    return edge, edge, edge


BODIES: Mapping[str, Body] = {
    "brain": Body(
        modalities=MODALITIES,
        convention="brats2021",
        shape=(96, 96, 80),
        made_of="Anatomy comes from formulas,\n"
        "contrast from the signal equations of spin echo and inversion recovery, tumours from random fields.",
        files="named as BraTS 2021 names its files: `_t1`, `_t1ce`, `_t2`, `_flair` (int16,\n"
        "zero outside the brain) and `_seg` (1 necrosis and non-enhancing core, 2 oedema, 4 enhancing tumour).",
        spacing_mm=_cubic,
        check_shape=brain.check_shape,
        case=lambda index, seed, shape: phantom_patient(index, seed=seed, shape=shape).case,
    ),
    "chest": Body(
        modalities=("ct", "mr"),
        convention="chest",
        shape=(96, 96, 32),
        made_of="Anatomy comes from formulas,\n"
        "contrast from Hounsfield units and the signal equation of spin echo, lung tumours from random fields.",
        files="with `_ct` (int16, Hounsfield units), `_mr` (T2-weighted,\n"
        "int16, arbitrary units) and `_seg` (1 tumour). Both images of a case lie on one grid, without motion between them.",
        spacing_mm=lambda shape: trunk_patient.spacing_mm(shape, "chest"),
        check_shape=lambda shape: trunk_patient.check_shape(shape, "chest"),
        case=lambda index, seed, shape: trunk_patient.chest_patient(index, seed=seed, shape=shape).case,
    ),
    "abdomen": Body(
        modalities=("t1", "t2"),
        convention="abdomen",
        shape=(96, 96, 32),
        made_of="Anatomy comes from formulas,\ncontrast from the signal equations of gradient and spin echo.",
        files="with `_t1` (in phase), `_t2` (fat suppressed; both int16,\n"
        "arbitrary units) and `_seg` (1 liver, 2 right kidney, 3 left kidney, 4 spleen), all on one grid.",
        spacing_mm=lambda shape: trunk_patient.spacing_mm(shape, "abdomen"),
        check_shape=lambda shape: trunk_patient.check_shape(shape, "abdomen"),
        case=lambda index, seed, shape: trunk_patient.abdomen_patient(index, seed=seed, shape=shape).case,
    ),
}
"""Name on the command line -> body."""


def named_body(name: str) -> Body:
    """The body of this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in BODIES:
        raise RecipeError(f"no body {name}", file="phantom", remedy=f"there are {', '.join(BODIES)}")
    return BODIES[name]


def check_request(index: int, seed: int, shape: Shape, body: str = "brain") -> None:
    """Refuse what no phantom can be made of.

    Raises:
        RecipeError: an unknown body, a negative index or seed, or a grid that is not three axes of at least 16 voxels (one may
            be 1 in the brain: a slice).
    """
    chosen = named_body(body)
    check_numbers(index, seed)
    chosen.check_shape(shape)


def phantom_case(index: int, *, seed: int, shape: Shape, body: str = "brain") -> Case:
    """Make one case: a pure function of its arguments. The same index and seed give the same patient at any size.

    Args:
        index: number of the patient in its cohort.
        seed: of the cohort.
        shape: (D, H, W) voxels, left->right, posterior->anterior, inferior->superior. The voxel size follows.
        body: `brain` (`modistill.phantom.brain`), `chest` or `abdomen` (`modistill.phantom.trunk_patient`).

    Raises:
        RecipeError: see `check_request`.
    """
    check_request(index, seed, shape, body)
    return BODIES[body].case(index, seed, shape)
