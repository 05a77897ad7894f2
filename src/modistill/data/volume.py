"""A volume: voxels and where they lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.errors import GeometryError

__all__ = ["Native", "Volume", "grid_distance_mm", "require_same_grid", "voxel_sizes_mm"]


def voxel_sizes_mm(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Edge lengths of a voxel along the three array axes, in mm.

    Example:
        >>> voxel_sizes_mm(np.diag([-1.0, 2.0, 3.0, 1.0]))
        (1.0, 2.0, 3.0)
    """
    x, y, z = (float(size) for size in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    return x, y, z


@dataclass(frozen=True)
class Native:
    """How a volume lies in its file, so that results can be written back exactly there.

    Attributes:
        path: the file it came from.
        shape: array shape in the file.
        affine: (4, 4) voxel -> mm RAS+ of the file.
        dtype: data type on disk.
        channel: index along the fourth axis, for one sequence of a 4-D file.
        notes: what the reader found odd in the file and accepted; `inspect` shows it.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    channel: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Volume:
    """Voxels and their place. Array axes run to the patient's Right, Anterior and Superior (the closest ones).

    Attributes:
        voxels: (D, H, W) array; D runs left -> right, H posterior -> anterior, W inferior -> superior.
        affine: (4, 4), voxel index -> mm in RAS+ world space.
        native: the file's own orientation; None for volumes that were made, not read.
        synthetic: whether a network made the image, and no scanner; reader and writer keep it in the header of the file.

    Raises:
        GeometryError: voxels are not three-dimensional, or the affine is singular or not finite.
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    native: Native | None = None
    synthetic: bool = False

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3:
            raise GeometryError(f"a volume has 3 axes, this array has shape {self.voxels.shape}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise GeometryError("the affine is singular or not finite", remedy="repair the image header")
        object.__setattr__(self, "affine", affine)

    def __repr__(self) -> str:
        shape, spacing = ("x".join(f"{size:g}" for size in sizes) for sizes in (self.shape, self.spacing_mm))
        return f"Volume({shape} {self.voxels.dtype}, {spacing} mm)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        d, h, w = self.voxels.shape
        return d, h, w

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the three axes, in mm."""
        return voxel_sizes_mm(self.affine)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel, in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def with_voxels(self, voxels: NDArray[np.generic]) -> Volume:
        """Other voxels on the same grid; what is made of a synthetic image is synthetic.

        Raises:
            GeometryError: the shape differs.
        """
        if voxels.shape != self.voxels.shape:
            raise GeometryError(f"shape {voxels.shape} does not fit the grid {self.voxels.shape}")
        return replace(self, voxels=voxels)


def grid_distance_mm(reference: Volume, other: Volume) -> float:
    """The largest distance, in mm, between corresponding corners of two grids of one shape.

    Example:
        >>> moved = np.eye(4)
        >>> moved[0, 3] = 0.4
        >>> grid_distance_mm(Volume(np.zeros((4, 4, 4))), Volume(np.zeros((4, 4, 4)), moved))
        0.4
    """
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in reference.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    corners = np.concatenate([corners, np.ones((8, 1))], axis=1)
    return float(np.linalg.norm(corners @ (other.affine - reference.affine).T, axis=1).max())


def require_same_grid(
    reference: Volume, other: Volume, *, reference_name: str, other_name: str, tolerance_mm: float = 0.1
) -> None:
    """Refuse two volumes that do not lie on one grid: shapes equal, and every corner within `tolerance_mm` in world space.

    Raises:
        GeometryError: naming both volumes, what differs (shape, spacing, orientation or position) and by how much.

    Example:
        >>> a = Volume(np.zeros((4, 4, 4)))
        >>> b = Volume(np.zeros((4, 4, 5)))
        >>> require_same_grid(a, b, reference_name="t1", other_name="t2")
        Traceback (most recent call last):
        ...
        modistill.errors.GeometryError: t2 has shape 4x4x5, t1 has 4x4x4 (resample them onto one grid)
    """

    def remedy(text: str) -> str:
        return text + "; nothing is moved or resampled silently"

    if other.shape != reference.shape:
        sizes = ["x".join(str(n) for n in volume.shape) for volume in (other, reference)]
        raise GeometryError(
            f"{other_name} has shape {sizes[0]}, {reference_name} has {sizes[1]}", remedy="resample them onto one grid"
        )
    if not np.allclose(other.spacing_mm, reference.spacing_mm, rtol=1e-3, atol=1e-3):
        sizes = ["x".join(f"{size:g}" for size in np.round(volume.spacing_mm, 3)) for volume in (other, reference)]
        raise GeometryError(
            f"{other_name} has spacing {sizes[0]} mm, {reference_name} has {sizes[1]} mm",
            remedy=remedy("resample them onto one grid"),
        )
    distance = grid_distance_mm(reference, other)
    if distance > tolerance_mm:
        turned = not np.allclose(other.affine[:3, :3], reference.affine[:3, :3], atol=1e-2)
        what = "is turned or flipped" if turned else "is shifted"
        raise GeometryError(
            f"{other_name} {what} against {reference_name}: corners lie up to {distance:.1f} mm apart, "
            f"{tolerance_mm:g} mm allowed",
            remedy=remedy("register the sequences or repair the header"),
        )
