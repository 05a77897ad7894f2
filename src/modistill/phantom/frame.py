"""What is the same for every body: names of patients, their random numbers, the grid and how it lies in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modistill.data.volume import Native
from modistill.errors import RecipeError
from modistill.phantom.noise import Axes

__all__ = ["Shape", "case_id", "check_numbers", "grid_axes", "placement", "stream"]

Shape = tuple[int, int, int]


def case_id(index: int) -> str:
    """Name of a patient: `Phantom_00007`."""
    return f"Phantom_{index:05d}"


def check_numbers(index: int, seed: int) -> None:
    """Refuse negative numbers.

    Raises:
        RecipeError: with both.
    """
    if index < 0 or seed < 0:
        raise RecipeError(f"seed {seed} and case number {index} must not be negative", file="phantom")


def stream(seed: int, index: int, part: int) -> np.random.Generator:
    """Random numbers of one part of one patient; parts do not disturb each other."""
    return np.random.default_rng([seed, index, part])


def grid_axes(shape: Shape, spacing_mm: tuple[float, float, float], middle: tuple[float, float, float] = (0, 0, 0)) -> Axes:
    """Coordinates in mm along each axis, centred; an axis of one voxel lies at `middle`."""
    axes = [
        (np.arange(n) - (n - 1) / 2) * step if n > 1 else np.array([m])
        for n, step, m in zip(shape, spacing_mm, middle, strict=True)
    ]
    first, second, third = (axis.astype(np.float32) for axis in axes)
    return first, second, third


def placement(name: str, shape: Shape, spacing_mm: tuple[float, float, float]) -> tuple[NDArray[np.float64], Native]:
    """Affine on canonical axes, and the orientation BraTS files have: LPS, with the origin in the first voxel of x and z."""
    d, h, _ = shape
    canonical = np.diag([*spacing_mm, 1.0])
    canonical[0, 3] = -(d - 1) * spacing_mm[0]
    native = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    native[1, 3] = (h - 1) * spacing_mm[1]
    return canonical, Native(Path(f"{name}.nii.gz"), shape, native, np.dtype(np.int16))
