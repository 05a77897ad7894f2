"""What all networks of DRIT are made of (`networks.drit` says how)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.networks.convolution import CONVOLUTION
from modistill.networks.norm import norm_activation

__all__ = ["IDENTITY", "MEANS", "RELU", "DRITConvolution", "by", "initialise", "require_images"]

MEANS = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
RELU, IDENTITY = 0.0, 1.0  # as slopes of a LeakyReLU


class DRITConvolution(nn.Module):
    """Reflected border, convolution, instance norm if it is wanted, LeakyReLU."""

    def __init__(
        self, n_in: int, n_out: int, taps: int, dims: int, *, slope: float, stride: int = 1, border: int = 1, norm: bool = False
    ) -> None:
        super().__init__()
        self.border, self.norm, self.slope = border, norm, slope
        self.conv = CONVOLUTION[dims](n_in, n_out, taps, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, n_out, *spatial) of (B, n_in, *spatial)."""
        x = _reflected(x, self.border)
        if not self.norm:
            return functional.leaky_relu(self.conv(x), self.slope)
        convolve = functional.conv3d if x.ndim == 5 else functional.conv2d
        x = convolve(x, self.conv.weight, stride=self.conv.stride)
        return norm_activation(x, bias=self.conv.bias, slope=self.slope)


def require_images(x: Tensor, channels: int, dims: int, smallest: int, who: str) -> None:
    """Refuse maps (B, C, *spatial) that a network cannot read.

    Raises:
        ModelError: other channels or axes, or an axis below `smallest` voxels.
    """
    found, *size = x.shape[1:]
    if found != channels or len(size) != dims:
        raise ModelError(
            f"{found} channels and {len(size)} axes, the {who} reads {channels} and {dims}",
            remedy="build all networks of a translator with the same channels, width and dims",
        )
    if min(size) < smallest:
        raise ModelError(
            f"{by(size)} voxels are too small for the {who}: every axis needs {smallest}",
            remedy="choose a larger patch, or a critic of fewer scales or layers",
        )


def by(size: Sequence[int]) -> str:
    """A size in words, such as 64x50."""
    return "x".join(map(str, size))


def initialise(network: nn.Module) -> None:
    """The taps; biases, linear layers and norms start as PyTorch's do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.normal_(module.weight, std=0.02)


def _reflected(x: Tensor, border: int) -> Tensor:
    """(B, C, *spatial) with so many mirrored voxels more at both ends of every axis."""
    if not torch.are_deterministic_algorithms_enabled():
        return functional.pad(x, (border, border) * (x.ndim - 2), mode="reflect")
    for axis in range(2, x.ndim):  # on GPUs the padding has no deterministic backward pass, but its parts have
        before, after = x.narrow(axis, 1, border), x.narrow(axis, x.shape[axis] - 1 - border, border)
        x = torch.cat([before.flip(axis), x, after.flip(axis)], axis)
    return x
