"""One phantom patient of the chest or the abdomen: anatomy, disease and scanners put together on one grid.

Voxels are square in the axial plane and as thick as the grid asks for. A voxel thicker than it is wide is the mean of several
thin slices, so partial volume comes out right along z too. The canvas is painted slab by slab, which bounds the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from modistill.data.case import Case
from modistill.data.volume import Volume
from modistill.errors import RecipeError
from modistill.phantom.abdomen import draw_abdomen
from modistill.phantom.chest import draw_chest
from modistill.phantom.frame import Shape, case_id, check_numbers, grid_axes, placement, stream
from modistill.phantom.lung_tumour import draw_lung_tumour
from modistill.phantom.noise import Axes, Floats
from modistill.phantom.scanners import PROTOCOLS, ct_image, draw_texture, mr_image
from modistill.phantom.shapes import Canvas
from modistill.phantom.substances import ABDOMEN, CHEST, Substance, draw_substances
from modistill.phantom.trunk import draw_pose

__all__ = ["FIELD_MM", "TrunkPatient", "abdomen_patient", "check_shape", "chest_patient", "spacing_mm"]

Spacing: TypeAlias = tuple[float, float, float]
Shares: TypeAlias = Mapping[str, Floats]
Labels: TypeAlias = NDArray[np.uint8]

FIELD_MM: Mapping[str, Spacing] = {"chest": (400.0, 300.0, 200.0), "abdomen": (400.0, 300.0, 220.0)}
"""What the grid must hold, in mm."""

_SMALLEST = 16
_SLAB_POINTS = 250_000


@dataclass(frozen=True)
class TrunkPatient:
    """A phantom patient and what it was made from.

    Attributes:
        case: all modalities and labels, on one grid.
        shares: tissue -> fraction of each voxel (D, H, W).
        seats: where the tumours of a chest lie (`modistill.phantom.lung_tumour`); nothing for an abdomen.
    """

    case: Case
    shares: Shares
    seats: tuple[str, ...] = ()


def spacing_mm(shape: Shape, body: str) -> Spacing:
    """Voxel size with which a grid just holds the body: square in the plane, slices as thick as they must be.

    Example:
        >>> spacing_mm((100, 96, 40), "chest")
        (4.0, 4.0, 5.0)
    """
    field = FIELD_MM[body]
    pixel = max(field[0] / shape[0], field[1] / shape[1])
    return pixel, pixel, field[2] / shape[2]


def check_shape(shape: Shape, body: str) -> None:
    """Refuse a grid that is too coarse.

    Raises:
        RecipeError: not three axes of at least 16 voxels.
    """
    if len(shape) != 3 or min(shape) < _SMALLEST:
        raise RecipeError(
            f"shape {'x'.join(map(str, shape))} is too small for {'an' if body[0] in 'aeiou' else 'a'} {body}",
            file="phantom",
            remedy=f"give three sizes of at least {_SMALLEST}",
        )


def chest_patient(index: int, *, seed: int, shape: Shape) -> TrunkPatient:
    """Make a chest with a lung tumour: a pure function of its arguments; the same patient at any size.

    Args:
        index: number of the patient in its cohort.
        seed: of the cohort.
        shape: (D, H, W) voxels, left->right, posterior->anterior, inferior->superior.

    Returns:
        CT in Hounsfield units and T2-weighted MR, whole numbers in float32; labels 1 in the tumour, uint8.

    Raises:
        RecipeError: negative numbers, or see `check_shape`.
    """
    check_numbers(index, seed)
    check_shape(shape, "chest")
    chest = draw_chest(stream(seed, index, 0))
    tumour = draw_lung_tumour(stream(seed, index, 1), chest)
    tissues = draw_substances(stream(seed, index, 3), CHEST, collapse=tumour.collapse_t2_ms)

    def paint(canvas: Canvas, axes: Axes) -> None:
        chest.paint(canvas, axes)
        tumour.paint(canvas, chest)

    def label(shares: Shares, axes: Axes) -> Labels:
        return _filled(shares, "tumour", "necrosis").astype(np.uint8)

    return _patient("chest", index, seed, shape, tissues, paint, label, tumour.seats)


def abdomen_patient(index: int, *, seed: int, shape: Shape) -> TrunkPatient:
    """Make an abdomen: a pure function of its arguments; the same patient at any size.

    Args:
        index: number of the patient in its cohort.
        seed: of the cohort.
        shape: (D, H, W) voxels, left->right, posterior->anterior, inferior->superior.

    Returns:
        T1-weighted in-phase and fat-suppressed T2-weighted MR, whole numbers in float32; labels 1 liver, 2 right kidney, 3 left
        kidney, 4 spleen, uint8.

    Raises:
        RecipeError: negative numbers, or see `check_shape`.
    """
    check_numbers(index, seed)
    check_shape(shape, "abdomen")
    abdomen = draw_abdomen(stream(seed, index, 0))
    tissues = draw_substances(stream(seed, index, 3), ABDOMEN)

    def label(shares: Shares, axes: Axes) -> Labels:
        labels = np.where(_filled(shares, "liver", "branch"), 1, 0)
        kidney = np.where(axes[0] > 0, 2, 3)[:, None, None]  # x runs to the patient's right
        labels = np.where(_filled(shares, "cortex", "medulla"), kidney, labels)
        return np.where(_filled(shares, "spleen"), 4, labels).astype(np.uint8)

    return _patient("abdomen", index, seed, shape, tissues, abdomen.paint, label)


def _patient(
    body: str,
    index: int,
    seed: int,
    shape: Shape,
    tissues: Mapping[str, Substance],
    paint: Callable[[Canvas, Axes], None],
    label: Callable[[Shares, Axes], Labels],
    seats: tuple[str, ...] = (),
) -> TrunkPatient:
    spacing = spacing_mm(shape, body)
    axes = grid_axes(shape, spacing)
    pose = draw_pose(stream(seed, index, 2))
    shares = dict(zip(tissues, _painted(tuple(tissues), axes, spacing, pose.into_body, paint), strict=True))
    texture = draw_texture(stream(seed, index, 4), axes)
    images = {}
    # Each modality has random numbers of its own, so that none depends on which others there are.
    for part, modality in enumerate(("ct", "mr", "t1", "t2"), start=5):
        rng = stream(seed, index, part)
        if (body, modality) in PROTOCOLS:
            images[modality] = mr_image(rng, PROTOCOLS[body, modality], tissues, shares, texture, axes)
        elif modality == "ct" and body == "chest":
            images[modality] = ct_image(rng, tissues, shares, texture.t1.reshape(shape))
    name = case_id(index)
    place = placement(name, shape, spacing)
    labels = Volume(label(shares, axes), *place)
    case = Case(name, {modality: Volume(image, *place) for modality, image in images.items()}, labels, body)
    return TrunkPatient(case, shares, seats)


def _painted(
    tissues: tuple[str, ...],
    axes: Axes,
    spacing: Spacing,
    into_body: Callable[[Axes], tuple[Floats, Floats, Floats]],
    paint: Callable[[Canvas, Axes], None],
) -> Floats:
    """Fractions (T, D, H, W) of a grid, slab by slab along z, each voxel the mean of thin slices."""
    x, y, z = axes
    thin = max(1, round(spacing[2] / spacing[0]))
    within = ((np.arange(thin) + 0.5) / thin - 0.5) * spacing[2]
    shares = np.empty((len(tissues), len(x), len(y), len(z)), dtype=np.float32)
    many = max(1, _SLAB_POINTS // (len(x) * len(y) * thin))
    for start in range(0, len(z), many):
        slab = slice(start, min(start + many, len(z)))
        fine: Axes = (x, y, (z[slab, None] + within).ravel().astype(np.float32))
        canvas = Canvas(tissues, *into_body(fine), spacing[0])
        paint(canvas, fine)
        shares[..., slab] = canvas.shares.reshape(*shares.shape[:3], -1, thin).mean(axis=-1)
    return shares


def _filled(shares: Shares, *names: str) -> NDArray[np.bool_]:
    """Where these tissues fill most of a voxel; if they do so in none, being small, where they fill most."""
    share = np.sum([shares[name] for name in names], axis=0)
    return np.asarray((share > 0) & (share >= min(0.5, float(share.max()))))
