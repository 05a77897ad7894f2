"""Blocks of the networks, and the exact identities that make them fast.

Each function is named after what it computes; how it computes it is an identity of arithmetic, equal to the plain form up to
rounding (`tests/networks/test_blocks.py` holds both against each other, gradients included):

- A nearest-neighbour upsampling by 2 followed by a 3x3x3 convolution is a transposed convolution of stride 2 with the taps that
  fall on one voxel added up: 8 multiplications a voxel instead of 27, and the upsampled map is never made.
- The same upsampling followed by a 4x4x4 convolution of stride 2 is a 3x3x3 convolution of the small map.
- A convolution of concatenated maps is the sum of the convolutions of its parts.
- A bias before an instance norm has no effect: the norm subtracts it. The parameter stays (weights are interchangeable with the
  plain network's), it just never gets a gradient.

Parameters always keep their plain shape; what a step needs is derived from them as it goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "CONVOLUTION",
    "ChannelDropout",
    "Convolution",
    "DecoderBlock",
    "EncoderBlock",
    "convolve",
    "halve",
    "norm_activation",
    "pool",
    "upsample_convolve",
]

Convolution: TypeAlias = nn.Conv2d | nn.Conv3d
CONVOLUTION: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORM: Mapping[int, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

# Rows: taps of the derived kernel along one axis; columns: taps of the plain kernel that fall on it.
_UPSAMPLED_3 = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
_UPSAMPLED_4_STRIDE_2 = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


class ChannelDropout(nn.Module):
    """Drops whole channels of each sample with probability `p` while training, and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) of the same shape."""
        if not self.training or self.p == 0:
            return x
        mask = x.new_empty(x.shape[:2] + (1,) * (x.ndim - 2)).bernoulli_(1 - self.p).div_(1 - self.p)
        return x * mask


class EncoderBlock(nn.Module):
    """Dropout of the input, then twice: 3x3x3 convolution, instance norm, LeakyReLU."""

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
        x = norm_activation(convolve(self.conv1, self.dropout(x), bias=False), self.norm1, slope=self.slope)
        return norm_activation(convolve(self.conv2, x, bias=False), self.norm2, slope=self.slope)


class DecoderBlock(nn.Module):
    """Merges a skip with the deeper map resized to it, then as the encoder block. Each of the two has a dropout of its own."""

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
        """Skip (B, C, *spatial) and deep (B, C, *about half of it) -> (B, out_channels, *spatial)."""
        skip, deep = self.skip_dropout(skip), self.deep_dropout(deep)
        x = convolve(self.skip, skip) + upsample_convolve(self.deep, deep, skip.shape[2:], bias=False)
        x = norm_activation(x, self.norm1, slope=self.slope)
        return norm_activation(convolve(self.conv2, x, bias=False), self.norm2, slope=self.slope)


def pool(x: Tensor) -> Tensor:
    """Maximum over blocks of 2 along each axis; odd remainders are left out."""
    return functional.max_pool3d(x, 2) if x.ndim == 5 else functional.max_pool2d(x, 2)


def convolve(conv: Convolution, x: Tensor, *, bias: bool = True) -> Tensor:
    """What `conv(x)` computes; with `bias=False`, without its bias."""
    return _convolution(x, conv.weight, conv.bias if bias else None, stride=conv.stride[0], padding=_padding(conv))


def upsample_convolve(conv: Convolution, x: Tensor, size: Sequence[int], *, bias: bool = True) -> Tensor:
    """A 3x3x3 convolution (padding 1) of `x` resized to `size` by nearest neighbour."""
    if list(size) != [2 * n for n in x.shape[2:]]:
        return convolve(conv, functional.interpolate(x, list(size)), bias=bias)
    kernel = _fold(conv.weight, _UPSAMPLED_3).transpose(0, 1)
    transposed = functional.conv_transpose3d if x.ndim == 5 else functional.conv_transpose2d
    return transposed(x, kernel, conv.bias if bias else None, stride=2, padding=1)


def halve(conv: Convolution, *parts: Tensor, bias: bool = True) -> Tensor:
    """A 4x4x4 convolution of stride 2 over the concatenation of `parts`, each resized to the first by nearest neighbour.

    Args:
        conv: its input channels are those of all parts together.
        parts: (B, C_i, *spatial); the first decides the size.
        bias: whether to add the convolution's bias.
    """
    size, begin, result = parts[0].shape[2:], 0, None
    for index, part in enumerate(parts):
        weight = conv.weight[:, begin : begin + part.shape[1]]
        begin += part.shape[1]
        own = conv.bias if bias and index == 0 else None
        if part.shape[2:] != size and all(n == 2 * m for n, m in zip(size, part.shape[2:], strict=True)):
            one = _convolution(part, _fold(weight, _UPSAMPLED_4_STRIDE_2), own, stride=1, padding=1)
        else:
            resized = part if part.shape[2:] == size else functional.interpolate(part, size)
            one = _convolution(resized, weight, own, stride=2, padding=1)
        result = one if result is None else result + one
    if result is None:
        raise ValueError("halve needs at least one part")
    return result


def norm_activation(x: Tensor, norm: nn.Module | None = None, *, slope: float) -> Tensor:
    """Instance norm (with the affine parameters of `norm`, or without), then LeakyReLU in place: the norm's output is not kept."""
    if x.device.type == "cpu" and x[0, 0].numel() > 1:
        # A group norm of one channel a group is the same, and keeps channels-last maps as they are; PyTorch's instance norm
        # copies them forth and back.
        weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
        normed = functional.group_norm(x, x.shape[1], weight, bias)  # type: ignore[arg-type]
    else:
        normed = functional.instance_norm(x) if norm is None else norm(x)
    return functional.leaky_relu_(normed, slope)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int) -> Tensor:
    """A convolution by the library's fast kernels, also where PyTorch would fall back to the slow ones.

    On CPUs PyTorch leaves oneDNN for an im2col form when a single 3-D sample is small (B * C * D * H up to 20480), which takes
    2 to 7 times as long. Handing the map over in oneDNN's own layout avoids that.
    """
    if x.ndim == 4:
        return functional.conv2d(x, weight, bias, stride, padding)
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and _small(x)
        and not torch.is_autocast_enabled("cpu")
    ):
        return functional.conv3d(x.to_mkldnn(), weight, bias, stride, padding).to_dense()
    return functional.conv3d(x, weight, bias, stride, padding)


def _small(x: Tensor) -> bool:
    batch, channels, d, h, _ = x.shape
    return batch == 1 and channels * d * h <= 20480 and torch.backends.mkldnn.is_available()


def _fold(weight: Tensor, taps: tuple[tuple[float, ...], ...]) -> Tensor:
    """Add up the taps of a kernel (O, I, *k) along every spatial axis as the rows of `taps` say."""
    matrix = weight.new_tensor(taps)
    for axis in range(2, weight.ndim):
        weight = torch.tensordot(weight, matrix, dims=([axis], [1])).movedim(-1, axis)
    return weight


def _padding(conv: Convolution) -> int:
    padding = conv.padding[0]
    return padding if isinstance(padding, int) else 0
