"""nnU-Net's changes of intensity: noise, blur, brightness, contrast, low resolution and gamma.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 2021
(https://doi.org/10.1038/s41592-020-01008-z), with the order, ranges and probabilities of its second version
(https://github.com/MIC-DKFZ/nnUNet). They act on z-scored intensities x; the functions change one image (*spatial) in place.

    change              of a sample    of each channel                                  drawn
    noise               0.1            always, one sigma for all                        sigma in 0..0.1
    blur                0.2            0.5                                              sigma in 0.5..1 voxels, for each axis
    brightness          0.15           always                                           factor in 0.75..1.25
    contrast            0.15           always                                           factor in 0.75..1.25
    low resolution      0.25           0.5                                              zoom in 0.5..1
    gamma, inverted     0.1            always                                           exponent in 0.7..1.5
    gamma               0.3            always                                           exponent in 0.7..1.5

Factors and exponents fall below and above 1 with equal chance, uniformly in either part.

Differs from nnU-Net
    1. The paper draws the *variance* of the noise from 0..0.1; the code takes the number drawn for its standard deviation. That
       is the default here, and `noise_is="variance"` is the paper.
    2. The Gaussian of the blur ends at 4 sigma, not 6.
    3. A channel without any signal, of a modality that the case lacks, stays zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

__all__ = [
    "IntensityTransform",
    "NNUNetIntensities",
    "add_noise",
    "blur",
    "change_contrast",
    "change_gamma",
    "lower_resolution",
]

Range = tuple[float, float]


@dataclass(frozen=True)
class NNUNetIntensities:
    """The distribution of the changes; probabilities and ranges as in the table above.

    Args:
        noise: upper end of what is drawn for the noise, from 0.
        noise_is: what is drawn: the "deviation" of the noise (nnU-Net's code) or its "variance" (its paper).
        sigma: of the blur, in voxels.
        brightness: factor.
        contrast: factor.
        zoom: of the low resolution; 0.5 is every second voxel.
        gamma: exponent.
    """

    noise: float = 0.1
    noise_is: Literal["deviation", "variance"] = "deviation"
    sigma: Range = (0.5, 1.0)
    brightness: Range = (0.75, 1.25)
    contrast: Range = (0.75, 1.25)
    zoom: Range = (0.5, 1.0)
    gamma: Range = (0.7, 1.5)
    noise_probability: float = 0.1
    blur_probability: float = 0.2
    brightness_probability: float = 0.15
    contrast_probability: float = 0.15
    zoom_probability: float = 0.25
    inverted_gamma_probability: float = 0.1
    gamma_probability: float = 0.3
    channel_probability: float = 0.5

    def sample(self, rng: np.random.Generator) -> IntensityTransform:
        """Draw what the channels share; each takes the rest from a generator of its own, seeded here."""
        drawn = rng.random(7) < (
            self.noise_probability,
            self.blur_probability,
            self.brightness_probability,
            self.contrast_probability,
            self.zoom_probability,
            self.inverted_gamma_probability,
            self.gamma_probability,
        )
        spread = float(rng.uniform(0, self.noise))
        deviation = spread if self.noise_is == "deviation" else spread**0.5
        return IntensityTransform(self, tuple(map(bool, drawn)), deviation, int(rng.integers(2**63)))


@dataclass(frozen=True)
class IntensityTransform:
    """Drawn `NNUNetIntensities`.

    Attributes:
        ranges: what they were drawn from.
        drawn: which of the seven changes take place, in the order of the table.
        deviation: of the noise.
        seed: of the channels' own numbers.
    """

    ranges: NNUNetIntensities
    drawn: tuple[bool, ...]
    deviation: float
    seed: int

    def __call__(self, images: Tensor) -> None:
        """Change images (M, *spatial) in place. What is zero around a patient may change, too; a channel of zeros does not."""
        if not any(self.drawn):
            return
        for index, image in enumerate(images):
            if image.any():
                self._change(image, np.random.default_rng((self.seed, index)))

    def _change(self, image: Tensor, rng: np.random.Generator) -> None:
        ranges = self.ranges
        noise, blurred, brightness, contrast, coarse, inverted, gamma = self.drawn
        blurred, coarse = (rng.random(2) < ranges.channel_probability) & (blurred, coarse)
        sigmas, zoom = rng.uniform(*ranges.sigma, 3), float(rng.uniform(*ranges.zoom))
        factors = [_around_one(limits, rng) for limits in (ranges.brightness, ranges.contrast, ranges.gamma, ranges.gamma)]
        if noise:
            add_noise(image, self.deviation, torch.Generator().manual_seed(int(rng.integers(2**63))))
        if blurred:
            blur(image, sigmas[: image.ndim].tolist())
        if brightness:
            image.mul_(factors[0])
        if contrast:
            change_contrast(image, factors[1])
        if coarse:
            lower_resolution(image, zoom)
        if inverted:
            change_gamma(image, factors[2], inverted=True)
        if gamma:
            change_gamma(image, factors[3])


def add_noise(image: Tensor, deviation: float, generator: torch.Generator) -> None:
    """Add noise that is normal around zero."""
    image.add_(torch.randn(image.shape, generator=generator), alpha=deviation)


def blur(image: Tensor, sigmas: Sequence[float]) -> None:
    """Gaussian of `sigmas` voxels along each axis; beyond its ends the image is mirrored."""
    image.copy_(torch.from_numpy(ndimage.gaussian_filter(image.numpy(), sigmas, mode="mirror")))


def change_contrast(image: Tensor, factor: float) -> None:
    """To mean + factor (x - mean), cut off where the range of x ends.

    Example:
        >>> image = torch.tensor([0.0, 1.0, 5.0])
        >>> change_contrast(image, 1.25)
        >>> image.tolist()
        [0.0, 0.75, 5.0]
    """
    mean, (low, high) = float(image.mean()), torch.aminmax(image)
    image.mul_(factor).add_(mean * (1 - factor)).clamp_(low, high)


def lower_resolution(image: Tensor, zoom: float) -> None:
    """Every axis reduced to round(zoom n) voxels, taken from the nearest, and enlarged again linearly."""
    size = [max(1, round(zoom * n)) for n in image.shape]
    small = functional.interpolate(image[None, None], size, mode="nearest-exact")
    mode = "trilinear" if image.ndim == 3 else "bilinear"
    image.copy_(functional.interpolate(small, tuple(image.shape), mode=mode)[0, 0])


def change_gamma(image: Tensor, gamma: float, *, inverted: bool = False) -> None:
    """To u^gamma with u = (x - min) / (max - min), brought back to the mean and the standard deviation of x.

    Inverted, it is -y of the y that -x becomes: u counts from the brightest voxel.

    Example:
        >>> image = torch.tensor([0.0, 1.0, 2.0])
        >>> change_gamma(image, 2.0)  # u^2 is 0, 1/4, 1
        >>> [round(value, 3) for value in image.tolist()]
        [0.199, 0.68, 2.121]
    """
    mean, deviation = _centre(image)
    low, high = map(float, torch.aminmax(image))
    sign = -1 if inverted else 1
    image.sub_(high if inverted else low).mul_(sign / max(high - low, 1e-7)).pow_(gamma)
    image.mul_(sign * deviation / max(_centre(image)[1], 1e-7)).add_(mean)


def _centre(image: Tensor) -> tuple[float, float]:
    """Take away the mean; it and the standard deviation. Much faster than `torch.std_mean`."""
    mean = float(image.mean())
    return mean, float(torch.linalg.vector_norm(image.sub_(mean))) / image.numel() ** 0.5


def _around_one(limits: Range, rng: np.random.Generator) -> float:
    """A factor below or above 1 with equal chance, uniform in either part; takes the same two numbers in any case."""
    below, place = rng.random(2)
    low, high = (limits[0], 1.0) if below < 0.5 else (1.0, limits[1])
    return float(low + (high - low) * place)
