"""Convolutions of resized, concatenated and channel-dropped maps, computed on the small map and without the copies.

Each function is exactly what its name says; how it gets there differs from the words, by identities that hold to rounding
(the tests compare them with the words):

1. A nearest-neighbour x2 upsampling followed by a 3-tap convolution: along each axis an output reads two voxels of the small
   map only, and the taps that meet the same voxel can be summed first. It is a 4-tap transposed convolution of stride 2, with 8
   instead of 27 products per output voxel in 3D, and the upsampled map is never made.
2. The same upsampling followed by a 4-tap convolution of stride 2 is a 3-tap convolution of the small map: 27 instead of 64.
3. A convolution of a concatenation is the sum of the convolutions of its parts: no map is copied, and a part that needs no
   gradient gets none. (Maps of one size that are smaller than the weights are concatenated, for then these would be copied.)
4. Dropping a channel is setting a column of the next weights to zero: for one sample no copy of the map is needed.
5. A 1x1x1 convolution is a matrix product over the channels, which lie side by side in memory (channels-last).

Here `O` and `I` are output and input channels of a convolution; `spatial` stands for two axes or three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "CONVOLUTION",
    "channels_last",
    "convolve",
    "convolve_concatenated",
    "convolve_resized",
    "drop_channels",
    "max_pool",
    "mix_channels",
]

CONVOLUTION: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}

# For each tap of the merged kernel, the taps of the original kernel that it sums.
_UPSAMPLE_THEN_3 = ((2,), (1, 2), (0, 1), (0,))  # as a transposed convolution
_UPSAMPLE_THEN_4_STRIDE_2 = ((0,), (1, 2), (3,))


def channels_last(x: Tensor) -> Tensor:
    """The same values with the channels of a voxel side by side in memory, where convolutions are faster for it.

    Measured per layer on one AVX2 core, forward and backward: 1.1x to 1.9x (3 to 64 channels, 3D). GPU tensor cores read this
    order too. Elsewhere (Apple's GPUs) `x` itself.
    """
    if x.device.type not in {"cpu", "cuda"}:
        return x
    return x.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)


def max_pool(x: Tensor) -> Tensor:
    """Maxima of 2x2(x2) voxels; an odd last voxel is left out."""
    return functional.max_pool3d(x, 2) if x.ndim == 5 else functional.max_pool2d(x, 2)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """Convolution (B, I, *spatial) * (O, I, *taps) with one voxel of zeros around; bias (O,) or none."""
    convolution = functional.conv3d if x.ndim == 5 else functional.conv2d
    if _left_to_slow_kernel(x, weight):
        return channels_last(convolution(x.to_mkldnn(), weight, bias, stride, 1).to_dense())
    return convolution(x, weight, bias, stride, 1)


def convolve_resized(x: Tensor, weight: Tensor, size: Sequence[int], *, stride: int = 1) -> Tensor:
    """`convolve` of `x` resized to `size` (nearest); computed on the small map if `size` is twice its own (identities 1, 2)."""
    small = tuple(x.shape[2:])
    if small == tuple(size):
        return convolve(x, weight, stride=stride)
    if tuple(size) == tuple(2 * n for n in small):
        if (weight.shape[-1], stride) == (3, 1):
            transposed = functional.conv_transpose3d if x.ndim == 5 else functional.conv_transpose2d
            return transposed(x, _merged(weight, _UPSAMPLE_THEN_3).transpose(0, 1), None, 2, 1)
        if (weight.shape[-1], stride) == (4, 2):
            return convolve(x, _merged(weight, _UPSAMPLE_THEN_4_STRIDE_2))
    return convolve(functional.interpolate(x, tuple(size)), weight, stride=stride)


def convolve_concatenated(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """`convolve` of the parts side by side, each resized to the first (identity 3).

    Args:
        parts: (B, I_n, *spatial_n); their channels add up to `I`.
        weight: (O, I, *taps).
        bias: (O,) or none.
        stride: of the convolution.
    """
    alike = len({part.shape[2:] for part in parts}) == 1
    if alike and weight.numel() > sum(part.numel() for part in parts):  # their weights would be the larger copy
        return convolve(torch.cat(list(parts), 1), weight, bias, stride=stride)
    first, *others = zip(parts, torch.split(weight, [part.shape[1] for part in parts], dim=1), strict=True)
    total = convolve(*first, bias, stride=stride)
    for part, columns in others:  # adding in place is safe: the gradient of a convolution does not need its output
        total.add_(convolve_resized(part, columns, parts[0].shape[2:], stride=stride))
    return total


def drop_channels(x: Tensor, weight: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    """What to convolve so that every channel of `x` is scaled first (identity 4).

    Args:
        x: (B, I, *spatial).
        weight: (O, I, *taps) of the convolution that follows.
        factors: (B, I) scale of each channel, 0 for a dropped one; None scales nothing.

    Returns:
        `x` and `weight`, one of which carries the factors: the weight for a batch of one, the map otherwise.
    """
    if factors is None:
        return x, weight
    factors = factors.reshape(*factors.shape, *(1,) * (x.ndim - 2))
    return (x, weight * factors.to(weight.dtype)) if len(x) == 1 else (x * factors.to(x.dtype), weight)


def mix_channels(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution with a single tap: (B, I, *spatial) -> (B, O, *spatial) (identity 5)."""
    return functional.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def _left_to_slow_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would convolve this map by copying patches instead of by oneDNN, which is 2 to 5 times as fast.

    It does so with one small 3-D sample on a CPU: B * C * D * H up to 20480. A map in oneDNN's own layout is always left to it.
    """
    return bool(
        x.ndim == 5
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and len(x) == 1
        and x[0, :, :, :, 0].numel() <= 20480
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _merged(weight: Tensor, sums: Sequence[Sequence[int]]) -> Tensor:
    """Kernel (O, I, *taps) whose taps along every axis are sums of the given taps of `weight`."""
    for axis in range(2, weight.ndim):
        slices = weight.unbind(axis)
        weight = torch.stack([reduce(torch.add, [slices[tap] for tap in taps]) for taps in sums], dim=axis)
    return weight
