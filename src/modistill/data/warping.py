"""Rotating, shearing and scaling patches about their centre, in one interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["affine_matrix", "inside", "sampling_grid", "warp"]


def affine_matrix(angles: NDArray[np.float64], shears: NDArray[np.float64], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation . shear . scaling, (3, 3), axes in the order superior, anterior, left-right.

    Args:
        angles: about the three axes, in radians.
        shears: coefficients s01, s02 and s10.
        scales: each axis by 1 + its scale.
    """
    (a, b, c), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    rotation = (
        np.array([[1, 0, 0], [0, a, -sa], [0, sa, a]])
        @ np.array([[b, 0, sb], [0, 1, 0], [-sb, 0, b]])
        @ np.array([[c, -sc, 0], [sc, c, 0], [0, 0, 1]])
    )
    s01, s02, s10 = shears
    shear = np.array([[1, s01, s02], [s10, 1, 0], [0, 0, 1]])
    matrix: NDArray[np.float64] = rotation @ shear @ np.diag(1 + scales)
    return matrix


def sampling_grid(matrix: NDArray[np.float64], shape: Sequence[int], source: Sequence[int]) -> Tensor:
    """Where a result of this shape takes its values from in a source around the same centre: (1, *shape, dims).

    `matrix` takes a voxel of the result, last axis first and counted from the centre, to the voxel of the source that it takes
    its value from.
    """
    # torch counts from the last axis, too, and from -1 to 1 between the outermost centres
    half, inner = (np.array([max(n - 1, 1) / 2 for n in reversed(sizes)]) for sizes in (shape, source))
    theta = np.zeros((1, len(shape), len(shape) + 1))
    theta[0, :, :-1] = matrix * half[None, :] / inner[:, None]
    return functional.affine_grid(torch.from_numpy(theta).float(), [1, 1, *shape], align_corners=True)


def inside(images: Tensor) -> Tensor:
    """(*spatial): where any of the images (M, *spatial) is non-zero. Several times faster than `any` over the images."""
    mask: Tensor = reduce(torch.logical_or, images != 0)
    return mask


def warp(images: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Images linearly, labels and mask to the nearest voxel; zero where nothing is known and outside the mask."""
    carried = torch.stack([labels.to(images.dtype), inside(images).to(images.dtype)])
    nearest = functional.grid_sample(carried[None], grid, mode="nearest", align_corners=True)[0]
    warped = functional.grid_sample(images[None], grid, mode="bilinear", align_corners=True)[0]
    return warped.mul_(nearest[1]), nearest[0].to(labels.dtype)
