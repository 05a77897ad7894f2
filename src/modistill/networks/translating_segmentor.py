"""A translator and the segmentor that reads what it makes, as one network for images of the translator's source.

The strategies of fusion that CMEDL is compared with (Jiang et al., IEEE TMI 2022, https://arxiv.org/abs/2107.07985, Table III).
With an image x, its translation F(x) and a segmentor S:

================  ============================================================  ================================
strategy          logits                                                        segmentor
================  ============================================================  ================================
pMRI              S(F(x))                                                       of one channel
CT+pMRI           S([x; F(x)])                                                  of two
weighted CT+pMRI  S([(1 - alpha) x; alpha F(x)]), alpha = sigmoid(R([x; F(x)]))  `WeightedSegmentor`, R `ResNet18`
================  ============================================================  ================================

`ResNet18` is that of He et al. (CVPR 2016, https://arxiv.org/abs/1512.03385), with two linear layers in place of its last. `k`
is the width, 64 by default:

======  ======================================================  ========  ==========
layer   content                                                 channels  resolution
======  ======================================================  ========  ==========
conv1   7x7 of stride 2, norm, ReLU                             in -> k   1/2
pool    maxima of 3x3, stride 2                                 k         1/4
layer1  two residual blocks                                     k         1/4
layer2  two residual blocks, the first of stride 2              2k        1/8
layer3  two residual blocks, the first of stride 2              4k        1/16
layer4  two residual blocks, the first of stride 2              8k        1/32
head    mean over the voxels; linear, ReLU, linear              4k, out
======  ======================================================  ========  ==========

A residual block is ReLU(x + [3x3, norm, ReLU, 3x3, norm](x)); where its shape changes, x passes a 1x1 convolution and a norm.
No convolution has a bias; taps start as N(0, 2 / (number of taps * channels out)) (He et al., https://arxiv.org/abs/1502.01852).

Differs from the text of CMEDL
    1. Of the weighting it says ResNet18 and two fully connected layers. The sigmoid, the width of the first (half of what it
       reads) and random initial weights are ours.
    2. An image is weighted as intensities from 0, its darkest, on; in [-1, 1] a weight would move it towards middle grey.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.hardware import wide
from modistill.networks.blocks import NormKind, build_norm
from modistill.networks.convolution import CONVOLUTION, channels_last
from modistill.networks.hinted import HintedNetwork

__all__ = ["ResNet18", "TranslatingSegmentor", "WeightedSegmentor"]

_MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class TranslatingSegmentor(nn.Module):
    """Logits of images of the translator's source.

    Args:
        translator: from images (B, 1, *spatial) in [-1, 1] to such of another modality.
        segmentor: reads the translation or, with two channels, image and translation.
    """

    def __init__(self, translator: nn.Module, segmentor: HintedNetwork | WeightedSegmentor) -> None:
        super().__init__()
        self.translator, self.segmentor = translator, segmentor

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, *spatial) from images (B, 1, *spatial) in [-1, 1]."""
        return self.read(images, self.translator(images))

    def read(self, images: Tensor, translated: Tensor) -> Tensor:
        """Logits (B, classes, *spatial) from images and their translation, both (B, 1, *spatial) in [-1, 1]."""
        seen = translated if self.segmentor.in_channels == 1 else torch.cat([images, translated.to(images.dtype)], 1)
        logits: Tensor = self.segmentor(seen)
        return logits


class WeightedSegmentor(nn.Module):
    """A segmentor of two channels whose share in the whole another network decides, image by image.

    Args:
        weighting: from pairs (B, 2, *spatial) to logits (B, 1) of alpha.
        segmentor: of two channels.
    """

    in_channels = 2

    def __init__(self, weighting: nn.Module, segmentor: HintedNetwork) -> None:
        super().__init__()
        self.weighting, self.segmentor = weighting, segmentor

    def forward(self, pair: Tensor) -> Tensor:
        """Logits (B, classes, *spatial) from image and translation (B, 2, *spatial) in [-1, 1]."""
        logits: Tensor = self.segmentor(self.weighted(pair))
        return logits

    def weighted(self, pair: Tensor) -> Tensor:
        """[(1 - alpha) u; alpha v] of u and v in [0, 1], both as the pair in [-1, 1]."""
        alpha = wide(self.weighting(pair)).sigmoid()
        shares = torch.cat([1 - alpha, alpha], 1).reshape(*pair.shape[:2], *(1,) * (pair.ndim - 2))
        return shares * (pair + 1) - 1


class ResNet18(nn.Module):
    """A few numbers of a whole image, by the network of the module's docstring.

    Args:
        in_channels: of the images.
        out: how many numbers.
        width: channels of the first scale (`k` of the table).
        norm: "batch", "instance" or "group". The last maps may be of a single voxel, of which an instance norm leaves nothing;
            for "instance", too, they are group norms.
        dims: 2 or 3.

    Example:
        >>> with torch.device("meta"):
        ...     network = ResNet18(in_channels=2)
        >>> count = lambda part: sum(p.numel() for p in part.parameters())
        >>> count(network) - count(network.head), count(network)
        (11173376, 11304961)
    """

    def __init__(self, in_channels: int, out: int = 1, *, width: int = 64, norm: NormKind = "batch", dims: int = 2) -> None:
        super().__init__()
        kind: NormKind = "batch" if norm == "batch" else "group"
        self.in_channels, self.dims, k = in_channels, dims, width
        self.conv1 = CONVOLUTION[dims](in_channels, k, 7, stride=2, padding=3, bias=False)
        self.bn1 = build_norm(kind, k, dims)
        self.maxpool = _MAX_POOL[dims](3, stride=2, padding=1)
        block = partial(_Block, norm=kind, dims=dims)
        self.layer1 = nn.Sequential(block(k, k), block(k, k))
        self.layer2 = nn.Sequential(block(k, 2 * k, stride=2), block(2 * k, 2 * k))
        self.layer3 = nn.Sequential(block(2 * k, 4 * k, stride=2), block(4 * k, 4 * k))
        self.layer4 = nn.Sequential(block(4 * k, 8 * k, stride=2), block(8 * k, 8 * k))
        self.head = nn.Sequential(nn.Linear(8 * k, 4 * k), nn.ReLU(), nn.Linear(4 * k, out))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B, out) from images (B, in_channels, *spatial).

        Raises:
            ModelError: other channels or axes than the network reads, or so small an image, alone in its batch in training,
                that a batch norm has nothing to compare.
        """
        self._check(images)
        x = self.maxpool(functional.relu(self.bn1(self.conv1(channels_last(images)))))
        for layer in self.layer1, self.layer2, self.layer3, self.layer4:
            x = layer(x)
        numbers: Tensor = self.head(x.flatten(2).mean(2))
        return numbers

    def _check(self, images: Tensor) -> None:
        batch, channels, *size = images.shape
        if channels != self.in_channels or len(size) != self.dims:
            raise ModelError(
                f"images of {channels} channels and {len(size)} axes, the weighting reads {self.in_channels} and {self.dims}",
                remedy="build it with the channels and dims of the segmentor",
            )
        left = batch * prod(-(-n // 32) for n in size)  # values of a channel after layer4
        if self.training and left < 2 and isinstance(self.bn1, nn.BatchNorm2d | nn.BatchNorm3d):
            raise ModelError(
                f"a single image of {'x'.join(map(str, size))} voxels is too small for the batch norms of the weighting",
                remedy="choose a larger batch, a patch of more than 32 voxels, or norm: group",
            )


class _Block(nn.Module):
    """The residual block of the module's docstring."""

    def __init__(self, n_in: int, n_out: int, *, norm: NormKind, dims: int, stride: int = 1) -> None:
        super().__init__()
        convolution = CONVOLUTION[dims]
        self.conv1 = convolution(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = build_norm(norm, n_out, dims)
        self.conv2 = convolution(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = build_norm(norm, n_out, dims)
        same = stride == 1 and n_in == n_out
        reshaped = [] if same else [convolution(n_in, n_out, 1, stride=stride, bias=False), build_norm(norm, n_out, dims)]
        self.downsample = nn.Sequential(*reshaped)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(self.downsample(x) + inside)
