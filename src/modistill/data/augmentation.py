"""Random changes of training samples: drawn first (from a generator), then applied (without chance).

`augmentation.sample(rng)` makes a `Transform`; `transform(images, labels)` gives the same result wherever and whenever it is
called. The loader seeds `rng` from (seed, epoch, position), so no worker can repeat the draws of another.

`HADNetAugmentation` is that of the pre-training stage of HAD-Net (Vadacchino et al., MIDL 2021). It differs from the authors'
code in three points:

1. Their random state is copied into each loader process and never advances in the parent, so an epoch held a handful of
   distinct draws, the same in every epoch. Here every sample has its own.
2. Where the affine map is not drawn, nothing is resampled; theirs samples at the identity, with the same result.
3. The mask that is carried along is the set of voxels where any image is non-zero (prepared images are zero outside the brain).

`NNUNetAugmentation` is nnU-Net's; where it differs stands in its docstring and in `modistill.data.intensities`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from modistill.data.intensities import IntensityTransform, NNUNetIntensities
from modistill.data.warping import affine_matrix, inside, sampling_grid, warp
from modistill.errors import RecipeError

__all__ = [
    "Augmentation",
    "HADNetAugmentation",
    "NNUNetAugmentation",
    "SpatialAugmentation",
    "StandardAugmentation",
    "Transform",
    "augmentations",
]


class Transform(Protocol):
    """One drawn change."""

    @property
    def margin(self) -> tuple[int, ...]:
        """Voxels that it is given beyond either end of each axis, and cuts off; none unless it says otherwise."""
        return ()

    def for_patch(self, size: Sequence[int]) -> Transform:
        """The same change, with the margin that it likes to have around a patch of this size."""
        return self

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Apply it to images (M, *spatial) float and labels (*spatial) integers; new tensors, the arguments stay."""


class Augmentation(Protocol):
    """A distribution of changes."""

    def sample(self, rng: np.random.Generator) -> Transform:
        """Draw one."""


@dataclass(frozen=True)
class HADNetAugmentation:
    """Flip left-right, and a small affine map about the centre.

    Args:
        flip_probability: of the flip.
        affine_probability: of the affine map.
        degrees: rotation about each axis, uniform in +-degrees.
        shear: coefficients s01, s02, s10 (the first axis is superior, the second anterior, the third left-right; the other
            three coefficients stay 0, as in the authors' code), uniform in +-shear.
        scale: each axis by 1 + uniform in +-scale.
    """

    flip_probability: float = 0.5
    affine_probability: float = 0.8
    degrees: float = 4.0
    shear: float = 0.04
    scale: float = 0.04

    def sample(self, rng: np.random.Generator) -> Transform:
        """Draw one; takes the same eleven numbers from `rng` in any case."""
        chances = rng.random(2)
        angles, shears, scales = rng.uniform(-1, 1, (3, 3)) * [[np.deg2rad(self.degrees)], [self.shear], [self.scale]]
        affine = bool(chances[1] < self.affine_probability)
        return HADNetTransform(
            bool(chances[0] < self.flip_probability), affine_matrix(angles, shears, scales) if affine else None
        )


@dataclass(frozen=True)
class HADNetTransform(Transform):
    """A drawn `HADNetAugmentation`; volumes only.

    Attributes:
        flip: reverse the left-right axis.
        matrix: (3, 3); output voxel (H-F, P-A, L-R order, from the centre) -> the input voxel it takes its value from.
    """

    flip: bool
    matrix: NDArray[np.float64] | None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images linearly, labels and mask to the nearest voxel; zero where nothing is known and outside the mask.

        Raises:
            RecipeError: the samples are slices.
        """
        if labels.ndim != 3:
            raise RecipeError("augmentation hadnet is made for volumes", remedy="use augmentation standard for slices")
        if self.flip:
            images, labels = images.flip(1), labels.flip(0)
        if self.matrix is None:
            return images, labels
        return warp(images, labels, sampling_grid(self.matrix, labels.shape, labels.shape))


@dataclass(frozen=True)
class StandardAugmentation:
    """Flips, and changes of intensity that differ between the modalities. For volumes and slices.

    Intensities change where an image is non-zero; background and absent modalities stay zero.

    Args:
        flip_axes: each is reversed with probability 0.5; 0 is left-right, the only one anatomy is nearly symmetric about.
        probability: of each change of intensity, drawn for each modality.
        scale: factor 1 + uniform in +-scale.
        shift: summand, uniform in +-shift, in standard deviations of the image.
        gamma: exponent exp(uniform in +-gamma) on intensities scaled to [0, 1]; the range stays.
        noise: standard deviation of Gaussian noise, uniform in 0..noise, in standard deviations of the image.
    """

    flip_axes: tuple[int, ...] = (0,)
    probability: float = 0.3
    scale: float = 0.15
    shift: float = 0.15
    gamma: float = 0.3
    noise: float = 0.1

    def sample(self, rng: np.random.Generator) -> Transform:
        """Draw one; each modality takes its numbers from a generator of its own, seeded here."""
        flips = rng.random(len(self.flip_axes)) < 0.5
        axes = tuple(axis for axis, flip in zip(self.flip_axes, flips, strict=True) if flip)
        return StandardTransform(self, axes, int(rng.integers(2**63)))


@dataclass(frozen=True)
class StandardTransform(Transform):
    """A drawn `StandardAugmentation`."""

    ranges: StandardAugmentation
    axes: tuple[int, ...]
    seed: int

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Flip, then change the intensities of each modality."""
        axes = [axis for axis in self.axes if axis < labels.ndim]
        images = images.flip([axis + 1 for axis in axes])  # copies, also without an axis
        for index, image in enumerate(images):
            self._change(image, np.random.default_rng((self.seed, index)))
        return images, labels.flip(axes)

    def _change(self, image: Tensor, rng: np.random.Generator) -> None:
        """In place; whole arrays and a mask at the end are several times faster than picking out the voxels inside."""
        ranges = self.ranges
        drawn = rng.random(4) < ranges.probability
        scale, shift, gamma = rng.uniform(-1, 1, 3) * (ranges.scale, ranges.shift, ranges.gamma)
        noise, seed = rng.uniform(0, ranges.noise), int(rng.integers(2**63))
        inside = image != 0
        if not drawn.any() or not inside.any():
            return
        mean = image.sum() / inside.sum()
        deviation = float((image.square().sum() / inside.sum() - mean.square()).clamp_min(0).sqrt())
        if drawn[0]:
            low, extent = float(image.min()), max(float(image.max() - image.min()), 1e-6)
            image.sub_(low).div_(extent).pow_(float(np.exp(gamma))).mul_(extent).add_(low)
        if drawn[1]:
            image.mul_(float(1 + scale))
        if drawn[2]:
            image.add_(float(shift) * deviation)
        if drawn[3]:
            generator = torch.Generator().manual_seed(seed)
            image.add_(torch.randn(image.shape, generator=generator), alpha=float(noise) * deviation)
        image.mul_(inside)


@dataclass(frozen=True)
class SpatialAugmentation:
    """Flip, rotation, scaling and a smooth deformation in the axial plane; intensities stay. For slices and volumes.

    The changes CMEDL names (Jiang et al., IEEE TMI 2022, https://arxiv.org/abs/2107.07985); their ranges are not stated there.
    All slices of a volume change alike.

    Args:
        flip_probability: of reversing left and right.
        degrees: rotation about the centre, uniform in +-degrees.
        scale: both axes by one factor of 1 + uniform in +-scale.
        deformation: standard deviation of the displacement of a control point, uniform in 0..deformation, as a share of the
            longer edge.
        points: control points along each edge.
    """

    flip_probability: float = 0.5
    degrees: float = 10.0
    scale: float = 0.1
    deformation: float = 0.02
    points: int = 6

    def sample(self, rng: np.random.Generator) -> Transform:
        """Draw one; takes as many numbers from `rng` in any case."""
        flip = bool(rng.random() < self.flip_probability)
        angle, scale = rng.uniform(-1, 1, 2) * (np.deg2rad(self.degrees), self.scale)
        strength = rng.uniform(0, self.deformation)
        field = rng.standard_normal((2, self.points, self.points)) * strength
        return SpatialTransform(flip, float(angle), float(1 + scale), field)


@dataclass(frozen=True)
class SpatialTransform(Transform):
    """A drawn `SpatialAugmentation`.

    Attributes:
        flip: reverse the first axis.
        angle: of the rotation, in radians.
        scale: above 1, things become larger.
        field: (2, points, points) displacements of the control points along the first and the second axis, as a share of the
            longer edge.
    """

    flip: bool
    angle: float
    scale: float
    field: NDArray[np.float64]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images linearly, labels to the nearest voxel; zero where nothing is known."""
        if self.flip:
            images, labels = images.flip(1), labels.flip(0)
        volume = labels.ndim == 3
        if volume:  # slices become channels: they share one grid
            depth, images, labels = images.shape[-1], images.movedim(-1, 1).flatten(0, 1), labels.movedim(-1, 0)
        else:
            labels = labels[None]
        grid = self._grid(labels.shape[1], labels.shape[2])
        warped = functional.grid_sample(images[None], grid, mode="bilinear", align_corners=True)[0]
        nearest = functional.grid_sample(labels[None].to(images.dtype), grid, mode="nearest", align_corners=True)[0]
        if volume:
            return warped.reshape(-1, depth, *warped.shape[1:]).movedim(1, -1), nearest.movedim(0, -1).to(labels.dtype)
        return warped, nearest[0].to(labels.dtype)

    def _grid(self, height: int, width: int) -> Tensor:
        """(1, H, W, 2): where every voxel takes its value from, the second axis first, -1 and 1 at the outermost centres."""
        half = torch.tensor([max(height - 1, 1) / 2, max(width - 1, 1) / 2])
        axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (height, width)), indexing="ij")
        places = torch.stack(axes) * half[:, None, None]  # in voxels, from the centre
        cos, sin = np.cos(self.angle) / self.scale, np.sin(self.angle) / self.scale
        y, x = places
        moved = torch.stack([cos * y - sin * x, sin * y + cos * x])
        field = torch.from_numpy(self.field).float()[None] * max(height, width)
        moved = moved + functional.interpolate(field, (height, width), mode="bicubic", align_corners=True)[0]
        return (moved / half[:, None, None]).flip(0).movedim(0, -1)[None]


@dataclass(frozen=True)
class NNUNetAugmentation:
    """Rotation, scaling, mirroring and changes of intensity as nnU-Net's second version trains with. For volumes and slices.

    Isensee et al., Nature Methods 2021 (https://doi.org/10.1038/s41592-020-01008-z; https://github.com/MIC-DKFZ/nnUNet).
    One interpolation does rotation and scaling; what lies beyond the patch is read with it, up to 0.3 of its edges on either
    side (nnU-Net: 205 voxels for 128). Images stay zero outside the mask and in channels that a case lacks.

    Args:
        rotation_probability: of a rotation about all axes.
        degrees: about each axis of a volume, uniform in +-degrees.
        slice_degrees: the same, of a slice.
        scaling_probability: of a scaling.
        scaling: one factor for all axes, uniform; above 1, things become *smaller*, as in nnU-Net.
        mirror_axes: each is reversed with probability 0.5.
        intensities: see `NNUNetIntensities`.

    Differs from nnU-Net
        1. Labels come from the nearest voxel; there, from the class whose interpolated share is largest.
        2. Patches turn alike whatever their shape; there, slices of unequal edges turn less, and flat volumes in one plane.
        3. Mirroring comes before the changes of intensity, which is the same but for roundings.
    """

    rotation_probability: float = 0.2
    degrees: float = 30.0
    slice_degrees: float = 180.0
    scaling_probability: float = 0.2
    scaling: tuple[float, float] = (0.7, 1.4)
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    intensities: NNUNetIntensities = field(default_factory=NNUNetIntensities)

    def sample(self, rng: np.random.Generator) -> NNUNetTransform:
        """Draw one; takes as many numbers from `rng` in any case."""
        rotated, scaled = rng.random(2) < (self.rotation_probability, self.scaling_probability)
        turns, scale = rng.uniform(-1, 1, 3), float(rng.uniform(*self.scaling))
        mirrored = rng.random(len(self.mirror_axes)) < 0.5
        return NNUNetTransform(
            np.deg2rad(self.degrees) * turns * rotated,
            float(np.deg2rad(self.slice_degrees) * turns[-1] * rotated),
            scale if scaled else 1.0,
            tuple(axis for axis, mirror in zip(self.mirror_axes, mirrored, strict=True) if mirror),
            self.intensities.sample(rng),
        )


@dataclass(frozen=True)
class NNUNetTransform(Transform):
    """A drawn `NNUNetAugmentation`.

    Attributes:
        angles: about the three axes of a volume, in radians.
        slice_angle: of a slice, in radians.
        scale: above 1, things become smaller.
        axes: those that are mirrored.
        intensities: drawn as well.
        margin: voxels beyond either end of each axis that images and labels come with.
    """

    angles: NDArray[np.float64]
    slice_angle: float
    scale: float
    axes: tuple[int, ...]
    intensities: IntensityTransform
    margin: tuple[int, ...] = ()

    def for_patch(self, size: Sequence[int]) -> NNUNetTransform:
        """With the margin of the box around the turned and scaled patch, at most 0.3 of each edge."""
        half = (np.array(size) - 1) / 2
        beyond = np.ceil(np.abs(self._matrix(len(size)))[::-1, ::-1] @ half - half - 1e-6)
        return replace(self, margin=tuple(int(n) for n in np.clip(beyond, 0, np.floor(0.3 * np.array(size)))))

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images linearly, labels and mask to the nearest voxel, without the margin; then mirrors and intensities."""
        matrix = self._matrix(labels.ndim)
        if not np.array_equal(matrix, np.eye(labels.ndim)):
            shape = [n - 2 * m for n, m in zip(labels.shape, self.margin or (0,) * labels.ndim, strict=True)]
            images, labels = warp(images, labels, sampling_grid(matrix, shape, labels.shape))
        axes = [axis for axis in self.axes if axis < labels.ndim]
        images, labels = images.flip([axis + 1 for axis in axes]), labels.flip(axes)  # copies, also without an axis
        mask = inside(images)
        self.intensities(images)
        return images.mul_(mask), labels

    def _matrix(self, dims: int) -> NDArray[np.float64]:
        """(dims, dims); output voxel (last axis first, from the centre) -> the input voxel it takes its value from."""
        if dims == 3:
            return affine_matrix(self.angles, np.zeros(3), np.full(3, self.scale - 1))
        cos, sin = np.cos(self.slice_angle), np.sin(self.slice_angle)
        return np.array([[cos, -sin], [sin, cos]]) * self.scale


augmentations: Mapping[str, Augmentation | None] = {
    "none": None,
    "hadnet": HADNetAugmentation(),
    "nnunet": NNUNetAugmentation(),
    "spatial": SpatialAugmentation(),
    "standard": StandardAugmentation(),
    "upright": SpatialAugmentation(flip_probability=0),
}
