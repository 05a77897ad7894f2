"""The blocks of a U-Net: two convolutions with norm and activation, on one scale.

The modules hold plain PyTorch layers (`d1.conv1.weight`, `d1.norm1.weight`, ...), so that weights can be read by any other
implementation; `convolution` and `norm` compute with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional, init
from torch.nn.modules.batchnorm import _BatchNorm

from modistill.networks.convolution import CONVOLUTION, convolve, convolve_concatenated, convolve_resized, drop_channels
from modistill.networks.norm import norm_activation

__all__ = [
    "ChannelDropout",
    "ConvNormReLU",
    "DecoderBlock",
    "EncoderBlock",
    "NormKind",
    "build_norm",
    "frozen_statistics",
    "in_the_middle",
    "normal_start",
    "resize_linearly",
    "without_dropout",
]

NORM: Mapping[int, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
Convolution = nn.Conv2d | nn.Conv3d
Norm = nn.InstanceNorm2d | nn.InstanceNorm3d
NormKind: TypeAlias = Literal["batch", "instance", "group"]


class ChannelDropout(nn.Module):
    """Drops whole channels of a sample with probability `p` and scales the others by 1 / (1 - p), while training.

    Setting `training` on these modules only gives Monte-Carlo dropout.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def factors(self, x: Tensor) -> Tensor | None:
        """The scale (B, C) of every channel of `x` (B, C, *spatial), float32; None if all stay as they are."""
        if not self.training or self.p == 0:
            return None
        return torch.empty(x.shape[:2], device=x.device).bernoulli_(1 - self.p).div_(1 - self.p)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, C, *spatial) with its channels dropped and scaled."""
        factors = self.factors(x)
        return x if factors is None else x * factors.reshape(*factors.shape, *(1,) * (x.ndim - 2)).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print(network)` shows."""
        return f"p={self.p}"


class EncoderBlock(nn.Module):
    """Dropout, then twice convolution, instance norm and LeakyReLU.

    Args:
        in_channels: of the input.
        middle: channels after the first convolution.
        out_channels: channels after the second.
        dropout: probability of dropping a channel of the input.
        dims: 2 or 3.
        slope: of LeakyReLU for negative values.
    """

    def __init__(self, in_channels: int, middle: int, out_channels: int, *, dropout: float, dims: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.dropout = ChannelDropout(dropout)
        self.conv1 = CONVOLUTION[dims](in_channels, middle, 3, padding=1)
        self.norm1 = NORM[dims](middle, affine=True)
        self.conv2 = CONVOLUTION[dims](middle, out_channels, 3, padding=1)
        self.norm2 = NORM[dims](out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels, *spatial)."""
        x, weight = drop_channels(x, self.conv1.weight, self.dropout.factors(x))
        x = _activate(convolve(x, weight), self.conv1, self.norm1, self.slope)
        return _activate(convolve(x, self.conv2.weight), self.conv2, self.norm2, self.slope)


class DecoderBlock(nn.Module):
    """A skip and a deeper map, resized to it, merged by one convolution; then norm, activation, and all three again.

    Args:
        in_channels: of the skip, of the deeper map, and after the first convolution.
        out_channels: channels after the second.
        dropout: probability of dropping a channel of the skip or of the deeper map, drawn independently.
        dims: 2 or 3.
        slope: of LeakyReLU for negative values.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dropout: float, dims: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.skip_dropout, self.deep_dropout = ChannelDropout(dropout), ChannelDropout(dropout)
        self.skip = CONVOLUTION[dims](in_channels, in_channels, 3, padding=1, bias=False)
        self.deep = CONVOLUTION[dims](in_channels, in_channels, 3, padding=1)
        self.norm1 = NORM[dims](in_channels, affine=True)
        self.conv2 = CONVOLUTION[dims](in_channels, out_channels, 3, padding=1)
        self.norm2 = NORM[dims](out_channels, affine=True)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        """(B, in_channels, *spatial) and (B, in_channels, *any) -> (B, out_channels, *spatial)."""
        size = skip.shape[2:]
        skip, of_skip = drop_channels(skip, self.skip.weight, self.skip_dropout.factors(skip))
        deep, of_deep = drop_channels(deep, self.deep.weight, self.deep_dropout.factors(deep))
        x = convolve(skip, of_skip).add_(convolve_resized(deep, of_deep, size))
        x = _activate(x, self.deep, self.norm1, self.slope)
        return _activate(convolve(x, self.conv2.weight), self.conv2, self.norm2, self.slope)


def _activate(x: Tensor, convolution: Convolution, norm: Norm, slope: float) -> Tensor:
    """Norm and activation of a convolution's output that still lacks its bias."""
    return norm_activation(x, bias=convolution.bias, weight=norm.weight, shift=norm.bias, slope=slope, eps=norm.eps)


class ConvNormReLU(nn.Module):
    """A 3x3(x3) convolution with a bias, a norm and a ReLU. Several maps are read as if concatenated.

    Args:
        in_channels: of all maps together.
        out_channels: of the result.
        norm: which norm; see `build_norm`.
        dims: 2 or 3.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: NormKind, dims: int) -> None:
        super().__init__()
        self.conv = CONVOLUTION[dims](in_channels, out_channels, 3, padding=1)
        self.norm = build_norm(norm, out_channels, dims)

    def forward(self, *maps: Tensor) -> Tensor:
        """(B, in_channels, *spatial), on one grid -> (B, out_channels, *spatial)."""
        x = self.norm(convolve_concatenated(maps, self.conv.weight, self.conv.bias))
        return functional.relu(x, inplace=True)


def build_norm(kind: NormKind, channels: int, dims: int) -> nn.Module:
    """PyTorch's norm of this kind for maps (B, channels, *spatial), with a learned scale and shift.

    Args:
        kind: over which values mean and variance are taken: "batch" over the batch and its voxels (in eval mode, running
            averages of both), "instance" over the voxels of a sample, "group" over those of a group of channels of a sample.
            There are 8 groups, or the largest power of two below that `channels` can be divided by.
        channels: number of channels.
        dims: 2 or 3.

    Raises:
        ValueError: another kind.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)
    if kind == "instance":
        return NORM[dims](channels, affine=True)
    if kind == "group":
        return nn.GroupNorm(gcd(channels, 8), channels)
    raise ValueError(f"norm is {kind!r}, it must be batch, instance or group")


def resize_linearly(x: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """`x` (B, C, *spatial) at another spatial size, by bilinear (trilinear) interpolation.

    With `align_corners` the centres of the outermost voxels stay where they are; without, the outer edges do.
    """
    return functional.interpolate(x, tuple(size), mode="trilinear" if x.ndim == 5 else "bilinear", align_corners=align_corners)


def in_the_middle(images: Tensor, size: Sequence[int], value: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Images in the middle of larger ones, as a small case lies in a patch, and the way back.

    Args:
        images: (B, C, *spatial).
        size: spatial size, nowhere smaller.
        value: around them.

    Example:
        >>> larger, back = in_the_middle(torch.ones(1, 1, 2, 3), (3, 3), 0.0)
        >>> larger.tolist(), tuple(back(larger).shape)
        ([[[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]], (1, 1, 2, 3))
    """
    before = [(want - have) // 2 for want, have in zip(size, images.shape[2:], strict=True)]
    after = [want - have - first for want, have, first in zip(size, images.shape[2:], before, strict=True)]
    ends = [end for both in zip(reversed(before), reversed(after), strict=True) for end in both]
    inner = tuple(slice(first, first + n) for first, n in zip(before, images.shape[2:], strict=True))
    return functional.pad(images, ends, value=value), lambda larger: larger[:, :, *inner]


def normal_start(network: nn.Module) -> None:
    """Weights of convolutions from N(0, 0.02^2), scales of norms from N(1, 0.02^2), biases and shifts zero."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            init.normal_(parameter, 0.0, 0.02)
        elif name.endswith("weight"):
            init.normal_(parameter, 1.0, 0.02)
        else:
            init.zeros_(parameter)


def frozen_statistics(network: nn.Module) -> Held:
    """While it is entered, batch norms leave their running statistics, and their count of batches, as they are.

    What they compute is the same: in training mode they normalise by the batch, in eval mode by the statistics they hold. It is
    for a network that others learn through, on images that its statistics shall not know.

    Example:
        >>> norm = torch.nn.BatchNorm2d(3)
        >>> with frozen_statistics(norm):
        ...     y = norm(torch.randn(2, 3, 8, 8) + 5)
        >>> norm.running_mean.tolist()
        [0.0, 0.0, 0.0]
    """
    return Held([module for module in network.modules() if isinstance(module, _BatchNorm)], "track_running_stats", False)


def without_dropout(network: nn.Module) -> Held:
    """While it is entered, no `ChannelDropout` drops anything; the rest of the network stays in its mode."""
    return Held([module for module in network.modules() if isinstance(module, ChannelDropout)], "p", 0.0)


def frozen_parameters(network: nn.Module) -> Held:
    """While it is entered, gradients pass through the network and leave its parameters alone."""
    return Held(list(network.parameters()), "requires_grad", False)


class Held:
    """While it is entered, an attribute of some objects has another value; afterwards each has its own again."""

    def __init__(self, objects: Sequence[object], attribute: str, value: object) -> None:
        self.objects, self.attribute, self.value = objects, attribute, value

    def __enter__(self) -> None:
        self.own = [getattr(one, self.attribute) for one in self.objects]
        for one in self.objects:
            setattr(one, self.attribute, self.value)

    def __exit__(self, *exception: object) -> None:
        for one, own in zip(self.objects, self.own, strict=True):
            setattr(one, self.attribute, own)
