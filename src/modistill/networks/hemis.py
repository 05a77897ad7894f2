"""U-HeMIS: one encoder for every modality, whose maps meet in mean and variance at four scales, and one decoder.

HeMIS (Havaei et al., MICCAI 2016, https://arxiv.org/abs/1607.05194) as a U-Net: Dorent et al., MICCAI 2019
(https://arxiv.org/abs/1907.11150), with the layers of its published code. `f` is the width, 8 by default:

=======  ======================================  ==========  =======================================
block    channels                                resolution  input
=======  ======================================  ==========  =======================================
stem     1 -> f                                  1           the image of one modality
1        f -> f -> f/2                           1           stem
2        f/2 -> 2f -> f                          1/2         max-pooled 1
3        f -> 4f -> 2f                           1/4         max-pooled 2
4        2f -> 8f -> 4f                          1/8         max-pooled 3
up 3     8f + 4f -> 4f -> 2f                     1/4         fused 4 resized, fused 3
up 2     2f + 2f -> 2f -> f                      1/2         up 3 resized, fused 2
up 1     f + f -> f -> f/2                       1           up 2 resized, fused 1
out      f/2 -> classes                          1           up 1; a 1x1x1 convolution
=======  ======================================  ==========  =======================================

Every arrow of a numbered block is an instance norm, a LeakyReLU (slope 0.01) and then a 3x3x3 convolution; the stem is a 1x1x1
convolution and a LeakyReLU. No convolution has a bias. Fused maps are the mean of a case's modalities beside their variance,
twice as many channels. U-HVED (`networks.hved`) has the same encoder and decoder, at other widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from modistill.errors import ModelError
from modistill.networks.blocks import NORM
from modistill.networks.convolution import CONVOLUTION, convolve, max_pool, mix_channels
from modistill.networks.norm import norm_activation

__all__ = ["Decoder", "Encoder", "HeMISUNet", "check_subset", "initialise", "mean_and_variance", "resize_linear"]

_SCALES, _SLOPE = 4, 0.01


class HeMISUNet(nn.Module):
    """Logits of every class for every voxel, from any non-empty subset of the modalities.

    Args:
        modalities: number of modalities M, each with an encoder of its own.
        classes: number of classes C, the background included.
        width: channels of the first scale (`f` of the table); even.
        dims: 2 or 3.

    Raises:
        ValueError: the width is odd or below 2.

    Example:
        >>> sum(p.numel() for p in HeMISUNet(modalities=4, classes=4).parameters())
        565888
    """

    def __init__(self, modalities: int, classes: int, width: int = 8, dims: int = 3) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(Encoder(width, width // 2, dims) for _ in range(modalities))
        self.decoder = Decoder(width, width, classes, dims)
        self.dims = dims
        initialise(self)

    def forward(self, images: Tensor, presence: Tensor) -> Tensor:
        """Logits (B, C, *spatial).

        Args:
            images: (B, M, *spatial); what stands in an absent channel must be finite, and changes no bit.
            presence: (B, M) bool, at least one true in every row.

        Raises:
            ModelError: see `check_subset`.
        """
        check_subset(images, presence, len(self.encoders), self.dims)
        maps = [encoder(image) for encoder, image in zip(self.encoders, torch.split(images, 1, dim=1), strict=True)]
        logits: Tensor = self.decoder([mean_and_variance(scale, presence) for scale in zip(*maps, strict=True)])
        return logits


class Encoder(nn.Module):
    """From the image of one modality to maps at four scales.

    Args:
        width: channels inside the first block, doubled at every scale.
        channels: that the first block gives, doubled at every scale.
        dims: 2 or 3.
    """

    def __init__(self, width: int, channels: int, dims: int) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width is {width}, it must be even: blocks give half of it")
        self.stem = CONVOLUTION[dims](1, width, 1, bias=False)
        self.blocks = nn.ModuleList()
        n = width
        for scale in range(_SCALES):
            inside, n_out = width * 2**scale, channels * 2**scale
            self.blocks.append(nn.Sequential(Unit(n, inside, dims), Unit(inside, n_out, dims)))
            n = n_out

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 1, *spatial) -> at scale s = 0 ... 3, (B, channels * 2^s, *spatial / 2^s)."""
        x = leaky_relu(mix_channels(image, self.stem.weight, None), _SLOPE)
        maps: list[Tensor] = []
        for block in self.blocks:
            maps.append(block(max_pool(maps[-1]) if maps else x))
        return maps


class Decoder(nn.Module):
    """From fused maps at four scales to one map of the full size.

    Args:
        channels: of the fused map of the first scale, doubled at every scale.
        width: channels inside the last block.
        outputs: channels of the result.
        dims: 2 or 3.
    """

    def __init__(self, channels: int, width: int, outputs: int, dims: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        n = channels * 2 ** (_SCALES - 1)
        for scale in reversed(range(_SCALES - 1)):
            inside, skip = width * 2**scale, channels * 2**scale
            self.blocks.append(nn.Sequential(Unit(n + skip, inside, dims), Unit(inside, inside // 2, dims)))
            n = inside // 2
        self.out = CONVOLUTION[dims](width // 2, outputs, 1, bias=False)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """(B, channels * 2^s, *spatial / 2^s) at s = 0 ... 3 -> (B, outputs, *spatial), no activation."""
        *skips, x = pyramid
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(torch.cat([resize_linear(x, skip.shape[2:]), skip], 1))
        return mix_channels(x, self.out.weight, None)


class Unit(nn.Module):
    """Instance norm, LeakyReLU, convolution: (B, in_channels, *spatial) -> (B, out_channels, *spatial)."""

    def __init__(self, in_channels: int, out_channels: int, dims: int) -> None:
        super().__init__()
        self.norm = NORM[dims](in_channels, eps=1e-6, affine=True)
        self.conv = CONVOLUTION[dims](in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = norm_activation(x, weight=self.norm.weight, shift=self.norm.bias, slope=_SLOPE, eps=self.norm.eps)
        return convolve(x, self.conv.weight)


def mean_and_variance(maps: Sequence[Tensor], presence: Tensor) -> Tensor:
    """Mean and variance over the modalities that each case has, side by side.

    The variance is divided by their number n, not n - 1: it is 0, exactly, for a single one.

    Args:
        maps: M maps (B, C, *spatial); the values of an absent one, which must be finite, change no bit.
        presence: (B, M) bool, at least one true in every row.

    Returns:
        (B, 2C, *spatial): C channels of means, then C of variances.
    """
    ones = (1,) * (maps[0].ndim - 1)
    n = presence.sum(1).reshape(-1, *ones)
    there = [column.reshape(-1, *ones) for column in presence.unbind(1)]
    mean = sum(torch.where(has, x, 0) for has, x in zip(there, maps, strict=True)) / n
    variance = sum(torch.where(has, (x - mean).square(), 0) for has, x in zip(there, maps, strict=True)) / n
    return torch.cat([mean, variance], 1)


def resize_linear(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation along every axis, output voxel i at i * n / size: TensorFlow 1's `resize_bilinear`.

    So the first voxel stays where it is, and the last ones repeat: twice the size is x0, (x0 + x1) / 2, x1, ..., xn, xn.

    Args:
        x: (B, C, *spatial).
        size: the spatial shape to reach.
    """
    x = x.movedim(1, -1)  # what is gathered is then channels-last
    for axis, target in enumerate(size, start=1):
        n = x.shape[axis]
        place = torch.arange(target, device=x.device) * n  # in units of 1 / target
        low = place // target
        share = (place % target / target).to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1 - axis))
        x = torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=n - 1)), share)
    return x.movedim(-1, 1)


def check_subset(images: Tensor, presence: Tensor, modalities: int, dims: int) -> None:
    """See that images and presence are those of a network of so many modalities and axes.

    Raises:
        ModelError: other channels or axes, an axis too small to be halved three times, or a case without any modality.
    """
    channels, *size = images.shape[1:]
    if channels != modalities or len(size) != dims or presence.shape != images.shape[:2]:
        raise ModelError(
            f"images of {channels} channels and {len(size)} axes with presence {tuple(presence.shape)},"
            f" the network reads {modalities} and {dims}",
            remedy="give a channel and a presence for every modality, zeros for one that is absent",
        )
    if min(size) < 8 or max(size) < 16:
        raise ModelError(
            f"images of {'x'.join(map(str, size))} voxels are too small: every axis needs 8, one of them 16",
            remedy="pad the images or choose a larger patch",
        )
    if not (presence.is_meta or presence.any(1).all()):  # shapes alone have no presence
        raise ModelError("a case without any modality", remedy="every row of presence needs one that is there")


def initialise(network: nn.Module) -> None:
    """Kaiming-normal convolutions, as the authors'; norms start as identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
