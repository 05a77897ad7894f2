"""Blocks of the networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CONVOLUTION", "ChannelDropout", "DecoderBlock", "EncoderBlock", "halve", "norm_activation", "pool"]

CONVOLUTION: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORM: Mapping[int, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class ChannelDropout(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        mask = x.new_empty(x.shape[:2] + (1,) * (x.ndim - 2)).bernoulli_(1 - self.p).div_(1 - self.p)
        return x * mask


class EncoderBlock(nn.Module):
    def __init__(self, in_channels: int, middle: int, out_channels: int, *, dropout: float, dims: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.dropout = ChannelDropout(dropout)
        self.conv1 = CONVOLUTION[dims](in_channels, middle, 3, padding=1)
        self.norm1 = NORM[dims](middle, affine=True)
        self.conv2 = CONVOLUTION[dims](middle, out_channels, 3, padding=1)
        self.norm2 = NORM[dims](out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.norm1(self.conv1(self.dropout(x))), self.slope)
        return functional.leaky_relu(self.norm2(self.conv2(x)), self.slope)


class DecoderBlock(nn.Module):
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
        deep = functional.interpolate(deep, skip.shape[2:])
        x = self.skip(self.skip_dropout(skip)) + self.deep(self.deep_dropout(deep))
        x = functional.leaky_relu(self.norm1(x), self.slope)
        return functional.leaky_relu(self.norm2(self.conv2(x)), self.slope)


def pool(x: Tensor) -> Tensor:
    return functional.max_pool3d(x, 2) if x.ndim == 5 else functional.max_pool2d(x, 2)


def halve(conv: nn.Conv2d | nn.Conv3d, *parts: Tensor) -> Tensor:
    return conv(torch.cat([functional.interpolate(part, parts[0].shape[2:]) for part in parts], dim=1))


def norm_activation(x: Tensor, *, slope: float) -> Tensor:
    return functional.leaky_relu(functional.instance_norm(x), slope)
