"""One phantom patient with a brain tumour: anatomy, tumour and scanner put together on one grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.data.case import Case
from modistill.data.volume import Volume
from modistill.errors import RecipeError
from modistill.phantom.anatomy import Tissues, draw_anatomy
from modistill.phantom.frame import Shape, case_id, check_numbers, grid_axes, placement, stream
from modistill.phantom.noise import Axes, Floats
from modistill.phantom.sequences import MODALITIES, Mask, acquire, draw_scans, draw_texture, draw_tissues, mix, white_signal
from modistill.phantom.tumour import Lesion, draw_tumour

__all__ = ["HEAD_MM", "Patient", "check_shape", "phantom_patient", "spacing_mm"]

HEAD_MM = (148.0, 184.0, 155.0)  # what the grid must hold; 240x240x155 voxels then have 1 mm, as BraTS has
_SMALLEST = 16


@dataclass(frozen=True)
class Patient:
    """A phantom patient and what it was made from.

    Attributes:
        case: four modalities and labels, on one grid.
        shares: tissue -> fraction of each voxel (D, H, W).
        kind: how the tumour enhances (`modistill.phantom.tumour`).
    """

    case: Case
    shares: dict[str, Floats]
    kind: str


def spacing_mm(shape: Shape) -> float:
    """Edge of the cubic voxels with which a grid just holds the head; axes of one voxel (slices) do not count.

    Example:
        >>> spacing_mm((240, 240, 155)), spacing_mm((74, 92, 155))
        (1.0, 2.0)
    """
    return max(head / voxels for head, voxels in zip(HEAD_MM, shape, strict=True) if voxels > 1)


def check_shape(shape: Shape) -> None:
    """Refuse a grid that holds no head.

    Raises:
        RecipeError: not three axes of at least 16 voxels (one may be 1: a slice).
    """
    if len(shape) != 3 or sum(n < _SMALLEST for n in shape) > (1 if 1 in shape else 0):
        raise RecipeError(
            f"shape {'x'.join(map(str, shape))} is too small for a head",
            file="phantom",
            remedy=f"give three sizes of at least {_SMALLEST}; one of them may be 1, for a slice",
        )


def phantom_patient(index: int, *, seed: int, shape: Shape) -> Patient:
    """Make one patient: a pure function of its arguments. The same index and seed give the same patient at any size.

    Args:
        index: number of the patient in its cohort.
        seed: of the cohort.
        shape: (D, H, W) voxels, left->right, posterior->anterior, inferior->superior; an axis of 1 gives the slice through
            the middle of the tumour. The voxel size follows (`spacing_mm`).

    Returns:
        Modalities t1, t1ce, t2, flair as whole numbers in float32, zero outside the brain; labels of BraTS 2021 as uint8.

    Raises:
        RecipeError: negative numbers, or see `check_shape`.
    """
    check_numbers(index, seed)
    check_shape(shape)
    anatomy = draw_anatomy(stream(seed, index, 0))
    tumour = draw_tumour(stream(seed, index, 1), anatomy)
    voxel_mm = spacing_mm(shape)
    axes = grid_axes(shape, (voxel_mm,) * 3, tumour.foci[0].centre)

    hull = anatomy.hull(*np.broadcast_arrays(*np.meshgrid(*axes, indexing="ij", sparse=True)))
    near = hull > -4.0
    x, y, z = (np.broadcast_to(c, shape)[near] for c in np.meshgrid(*axes, indexing="ij", sparse=True))
    brain = anatomy.at(*tumour.displace(x, y, z, hull[near]), voxel_mm)
    lesion = tumour.at(x, y, z, brain, voxel_mm)
    shares = _with_lesion(brain, lesion)
    images = _scan(stream(seed, index, 2), shares, lesion.wetness, brain.brain > 0, near, axes)

    def volume(voxels: NDArray[Any]) -> Volume:
        return Volume(voxels, *placement(case_id(index), shape, (voxel_mm,) * 3))

    labels = _on_grid(np.where(brain.brain > 0, lesion.labels, 0), near).astype(np.uint8)
    case = Case(case_id(index), {name: volume(image) for name, image in images.items()}, volume(labels), "brats2021")
    inside = {name: _on_grid(np.where(brain.brain > 0, share, 0), near) for name, share in shares.items()}
    return Patient(case, inside, tumour.kind)


def _with_lesion(brain: Tissues, lesion: Lesion) -> dict[str, Floats]:
    """Shares of all tissues: the core replaces what was there, oedema takes white matter first, then deep grey matter."""
    core = lesion.shares["necrosis"] + lesion.shares["solid"] + lesion.shares["enhancing"]
    shares = {name: share * (1 - core) for name, share in brain.shares.items()}
    left = lesion.shares["oedema"]
    for name in ("white", "deep"):
        taken = np.minimum(left, shares[name])
        shares[name], left = shares[name] - taken, left - taken
    return {**shares, **lesion.shares}


def _scan(
    rng: np.random.Generator, shares: dict[str, Floats], wetness: Floats, inside: Mask, near: Mask, axes: Axes
) -> dict[str, Floats]:
    """All sequences of one examination."""
    tissues, scans = draw_tissues(rng), draw_scans(rng)
    texture = draw_texture(rng, axes, near)
    mask = _on_grid(inside, near).astype(bool)
    images = {}
    for name in MODALITIES:
        truth = np.where(inside, mix(scans[name], tissues, shares, texture, wetness), 0)
        white = white_signal(scans[name], tissues)
        images[name] = acquire(rng, scans[name], _on_grid(truth, near), mask, axes, white)
    return images


def _on_grid(values: NDArray[Any], near: Mask) -> Floats:
    grid = np.zeros(near.shape, dtype=np.float32)
    grid[near] = values
    return grid
