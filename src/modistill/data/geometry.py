"""The way from the grid of a case to a prepared array, and back: crop, resampling, padding, each with its inverse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from modistill.errors import GeometryError

__all__ = ["Geometry", "Triple", "centred", "triple", "tuples"]

Triple: TypeAlias = tuple[int, int, int]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Geometry:
    """Where a prepared array lies in the canonical grid of its case.

    Attributes:
        shape: (D, H, W) of the case.
        spacing_mm: voxel size of the case, in mm.
        box: (start, stop) of the crop along each axis, in voxels of the case.
        resampled: shape of the box on the grid of `prepared_spacing_mm`; the shape of the box itself if it was not resampled.
        prepared_spacing_mm: voxel size of the prepared array.
        pad: voxels added (before, after) along each axis; negative where voxels were cut.
    """

    shape: Triple
    spacing_mm: tuple[float, float, float]
    box: tuple[tuple[int, int], ...]
    resampled: Triple
    prepared_spacing_mm: tuple[float, float, float]
    pad: tuple[tuple[int, int], ...]

    @property
    def prepared_shape(self) -> Triple:
        """(D, H, W) of the prepared array."""
        d, h, w = (n + before + after for n, (before, after) in zip(self.resampled, self.pad, strict=True))
        return d, h, w

    @property
    def cropped_shape(self) -> Triple:
        """(D, H, W) of the box, in voxels of the case."""
        d, h, w = (stop - start for start, stop in self.box)
        return d, h, w

    @property
    def is_cut(self) -> bool:
        """Whether the case was larger than the asked size and lost voxels."""
        return any(amount < 0 for both in self.pad for amount in both)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index into the case's grid."""
        return tuple(slice(start, stop) for start, stop in self.box)

    def forward(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """(box of the case) -> (d, h, w) prepared: resampled, padded with zeros, cut. Integers take the nearest voxel.

        Raises:
            GeometryError: the array does not have the shape of the box.
        """
        if voxels.shape != self.cropped_shape:
            raise GeometryError(f"an array of shape {voxels.shape} does not fit the box {self.cropped_shape}")
        return _pad(_resample(voxels, self.spacing_mm, self.resampled, self.prepared_spacing_mm), self.pad, 0)

    def backward(self, voxels: NDArray[Any], outside: Any = 0) -> NDArray[Any]:
        """(d, h, w) prepared -> (D, H, W) on the grid of the case; `outside` is the value where nothing is known.

        Raises:
            GeometryError: the array does not have the prepared shape.
        """
        if voxels.shape != self.prepared_shape:
            raise GeometryError(f"a map of shape {voxels.shape} does not fit the prepared shape {self.prepared_shape}")
        whole = np.full(self.shape, outside, dtype=voxels.dtype)
        box = _pad(voxels, tuple((-before, -after) for before, after in self.pad), outside)
        whole[self.slices] = _resample(box, self.prepared_spacing_mm, self.cropped_shape, self.spacing_mm)
        return whole

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Geometry:
        """The inverse of `to_json`, also after a journey through a JSON file."""
        return cls(**{name: tuples(values[name]) for name in (field.name for field in fields(cls))})


def centred(have: int, want: int) -> tuple[int, int]:
    """Voxels to add (or, negative, to cut) before and after; an odd one goes to the end.

    Example:
        >>> centred(5, 8), centred(8, 5)
        ((1, 2), (-1, -2))
    """
    before = int((want - have) / 2)
    return before, want - have - before


def _pad(voxels: NDArray[Any], pad: tuple[tuple[int, int], ...], value: Any) -> NDArray[Any]:
    cut = tuple(slice(max(0, -before), n - max(0, -after)) for n, (before, after) in zip(voxels.shape, pad, strict=True))
    added = [(max(0, before), max(0, after)) for before, after in pad]
    return np.pad(voxels[cut], added, constant_values=value)


def _resample(
    voxels: NDArray[Any], spacing_mm: tuple[float, ...], shape: Triple, new_spacing_mm: tuple[float, ...]
) -> NDArray[Any]:
    """Onto a grid with the same centre; fractions linearly, integers to the nearest voxel; untouched if the grids are one."""
    if spacing_mm == new_spacing_mm and voxels.shape == shape:
        return voxels
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))  # SimpleITK counts axes from the last
    image.SetSpacing(spacing_mm[::-1])
    extents = zip(voxels.shape, spacing_mm, shape, new_spacing_mm, strict=True)
    origin = [((n - 1) * old - (m - 1) * new) / 2 for n, old, m, new in extents]
    linear = np.issubdtype(voxels.dtype, np.floating)
    resampled = sitk.Resample(
        image,
        tuple(shape)[::-1],
        sitk.Transform(),
        sitk.sitkLinear if linear else sitk.sitkNearestNeighbor,
        origin[::-1],
        new_spacing_mm[::-1],
        image.GetDirection(),
        0.0,
        image.GetPixelID(),
    )
    return np.asarray(sitk.GetArrayFromImage(resampled))


def triple(values: Iterable[Value]) -> tuple[Value, Value, Value]:
    """Exactly three values, as a tuple."""
    a, b, c = values
    return a, b, c


def tuples(value: Any) -> Any:
    """Lists (as JSON and YAML give them) become tuples, at every depth."""
    return tuple(tuples(item) for item in value) if isinstance(value, list | tuple) else value
