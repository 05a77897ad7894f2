"""The U-Net of HAD-Net: four scales, instance norm, whole-channel dropout, named feature maps.

Adapted from No-New-Net; the layers are those of Vadacchino et al., HAD-Net (MIDL 2021, https://arxiv.org/abs/2103.16617), as
its published code builds them. `k` is the width, 32 by default:

======  =======================  ==========  ==========================================
block   channels                 resolution  input
======  =======================  ==========  ==========================================
d1      in -> k -> k             1           images
d2      k -> 2k -> 2k            1/2         max-pooled d1
d3      2k -> 4k -> 4k           1/4         max-pooled d2
d4      4k -> 8k -> 8k           1/8         max-pooled d3
c5      8k -> 16k -> 8k          1/16        max-pooled d4
u4      8k + 8k -> 8k -> 4k      1/8         d4, and c5 resized to it
u3      4k + 4k -> 4k -> 2k      1/4         d3, and u4 resized to it
u2      2k + 2k -> 2k -> k       1/2         d2, and u3 resized to it
u1      k + k -> k -> k          1           d1, and u2 resized to it
out     k -> classes             1           u1; a 1x1x1 convolution, no activation
======  =======================  ==========  ==========================================

Every arrow but the last is a 3x3x3 convolution, instance norm and LeakyReLU (slope 0.01).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Self

from torch import Tensor, nn

from modistill.errors import ModelError
from modistill.networks.blocks import DecoderBlock, EncoderBlock
from modistill.networks.convolution import CONVOLUTION, channels_last, max_pool, mix_channels

__all__ = ["Features", "Hierarchy", "UNet"]


@dataclass(frozen=True)
class Hierarchy:
    """Outputs of the inner blocks of a `UNet`, before the next block's dropout; (B, channels, *spatial) each, see the module.

    They are what a critic sees, and together smaller than one map of the full size.
    """

    d2: Tensor
    d3: Tensor
    d4: Tensor
    c5: Tensor
    u4: Tensor
    u3: Tensor

    def detached(self) -> Self:
        """The same maps, cut off from the graph that made them."""
        return type(self)(**{field.name: getattr(self, field.name).detach() for field in fields(self)})


@dataclass(frozen=True)
class Features(Hierarchy):
    """Outputs of all blocks."""

    d1: Tensor
    u2: Tensor
    u1: Tensor

    def hierarchy(self) -> Hierarchy:
        """The inner maps alone: whoever keeps these lets go of the three large ones."""
        return Hierarchy(**{field.name: getattr(self, field.name) for field in fields(Hierarchy)})


class UNet(nn.Module):
    """Logits of every class for every voxel, in two or three dimensions, at any size from the minimum up.

    Args:
        in_channels: number of modalities it reads.
        classes: number of classes, the background included.
        width: channels of the first scale (`k` of the table).
        dropout: probability with which a block drops a channel of its input. The first block drops none unless it reads
            `width` channels or more (so that no modality is lost by chance).
        dims: 2 or 3.
        slope: of LeakyReLU for negative values.

    Convolutions start Kaiming-normal with zero biases, norms as identity.

    Example:
        >>> sum(p.numel() for p in UNet(in_channels=4, classes=4).parameters())
        16489188
    """

    def __init__(
        self, in_channels: int, classes: int, width: int = 32, dropout: float = 0.2, dims: int = 3, slope: float = 0.01
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.width, self.dims = in_channels, classes, width, dims
        k = width
        encoder = partial(EncoderBlock, dropout=dropout, dims=dims, slope=slope)
        decoder = partial(DecoderBlock, dropout=dropout, dims=dims, slope=slope)
        self.d1 = encoder(in_channels, k, k, dropout=dropout if in_channels >= k else 0.0)
        self.d2 = encoder(k, 2 * k, 2 * k)
        self.d3 = encoder(2 * k, 4 * k, 4 * k)
        self.d4 = encoder(4 * k, 8 * k, 8 * k)
        self.c5 = encoder(8 * k, 16 * k, 8 * k)
        self.u4 = decoder(8 * k, 4 * k)
        self.u3 = decoder(4 * k, 2 * k)
        self.u2 = decoder(2 * k, k)
        self.u1 = decoder(k, k)
        self.out = CONVOLUTION[dims](k, classes, kernel_size=1)
        self._initialise()

    @property
    def before_dropout(self) -> tuple[str, ...]:
        """The blocks whose output no dropout has touched."""
        return () if self.d1.dropout.p else ("d1",)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, *spatial) from images (B, in_channels, *spatial). Raises as `with_features`."""
        return self.with_features(images)[0]

    def with_features(self, images: Tensor) -> tuple[Tensor, Features]:
        """Logits (B, classes, *spatial), and the outputs of all blocks.

        Raises:
            ModelError: other channels than `in_channels`, or an axis too small to be halved four times.
        """
        self._check(images)
        d1 = self.d1(channels_last(images))
        d2 = self.d2(max_pool(d1))
        d3 = self.d3(max_pool(d2))
        d4 = self.d4(max_pool(d3))
        c5 = self.c5(max_pool(d4))
        u4 = self.u4(d4, c5)
        u3 = self.u3(d3, u4)
        u2 = self.u2(d2, u3)
        u1 = self.u1(d1, u2)
        logits = mix_channels(u1, self.out.weight, self.out.bias)
        return logits, Features(d2=d2, d3=d3, d4=d4, c5=c5, u4=u4, u3=u3, d1=d1, u2=u2, u1=u1)

    def _check(self, images: Tensor) -> None:
        channels, *size = images.shape[1:]
        if channels != self.in_channels or len(size) != self.dims:
            raise ModelError(
                f"images of {channels} channels and {len(size)} axes, the network reads {self.in_channels} and {self.dims}",
                remedy="give the modalities the model was trained with",
            )
        if min(size) < 16 or max(size) < 32:
            raise ModelError(
                f"images of {'x'.join(map(str, size))} voxels are too small: every axis needs 16, one of them 32",
                remedy="pad the images or choose a larger patch",
            )
