"""FC-DenseNet57, the DenseFCN of CMEDL: a U-Net of dense blocks, in which every layer reads all that came before it.

Jégou et al., "The One Hundred Layers Tiramisu: Fully Convolutional DenseNets for Semantic Segmentation", CVPR Workshops 2017
(https://arxiv.org/abs/1611.09326), at the size of CMEDL (Jiang et al., IEEE TMI 2022, https://arxiv.org/abs/2107.07985), which
prints 1.37 M parameters. With a width of 48 channels, and layers that each grow a quarter of it, 12:

==========  ==============  ==========  =====================================  ==================
block       channels        resolution  input                                  its layers read
==========  ==============  ==========  =====================================  ==================
first       in -> 48        1           images; a 3x3 convolution
down0       48 -> 96        1           first                                  48, 60, 72, 84
down1       96 -> 144       1/2         down0, down                            96, 108, 120, 132
down2       144 -> 192      1/4         down1, down                            144, 156, 168, 180
down3       192 -> 240      1/8         down2, down                            192, 204, 216, 228
down4       240 -> 288      1/16        down3, down                            240, 252, 264, 276
bottleneck  288 -> 48       1/32        down4, down                            288, 300, 312, 324
up0         336 -> 48       1/16        bottleneck, up; down4                  336, 348, 360, 372
up1         288 -> 48       1/8         up0, up; down3                         288, 300, 312, 324
up2         240 -> 48       1/4         up1, up; down2                         240, 252, 264, 276
up3         192 -> 48       1/2         up2, up; down1                         192, 204, 216, 228
up4         144 -> 192      1           up3, up; down0                         144, 156, 168, 180
out         192 -> classes  1           up4; a 1x1 convolution, no activation
==========  ==============  ==========  =====================================  ==================

A layer is batch norm, ReLU, a 3x3 convolution and dropout. A block has four; on the way down, and in up4, it gives its input
beside what the layers have grown, elsewhere what they have grown alone. "Down" is a transition of batch norm, ReLU, a 1x1
convolution that keeps the channels, dropout and max-pooling; "up" is a 3x3 transposed convolution of stride 2 without padding.
Of n voxels it makes 2n + 1: as many as an odd skip has; where the skip is even, the last is cut off. Maps of the sites:

==============  =============================================  ==========================
site            maps                                           at 256x256
==============  =============================================  ==========================
low             first, down0                                   48x256x256, 96x256x256
mid             bottleneck                                     48x8x8
high            what the last layer of up3 reads; up4          228x128x128, 192x256x256
high_symmetric  input and growth of up3, and of up4            240x128x128, 192x256x256
==============  =============================================  ==========================

`high` has the sizes that CMEDL prints. They are of different kinds: the last layer of up3 reads all but what it grows itself,
while up4 is whole. `high_symmetric` is ours: both are whole.

Differs from the papers
    1. The smallest network of Jégou et al. is called FC-DenseNet56. CMEDL's number of parameters, to every printed digit, is
       that of a PyTorch version called FC-DenseNet57 (https://github.com/bfortuner/pytorch_tiramisu), whose layers are these.
    2. CMEDL compares sites in its U-Net only. `low` and `mid` are what corresponds to them here.
    3. CMEDL names no initial weights; they are those of Jégou et al.
Differs from the PyTorch version
    4. Logits come out, not their log-softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional, init

from modistill.networks.blocks import ChannelDropout, NormKind, build_norm
from modistill.networks.convolution import CONVOLUTION, convolve, max_pool, mix_channels
from modistill.networks.hinted import HintedNetwork, Hints

__all__ = ["FCDenseNet"]

_LAYERS = 4  # of a block
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class FCDenseNet(HintedNetwork):
    """Logits of every class for every voxel, in two or three dimensions, from 32 voxels along every axis and 64 along one.

    Args:
        in_channels: number of modalities it reads.
        classes: number of classes, the background included.
        width: channels of the first convolution, and of what a block grows; a multiple of 4.
        norm: "batch", "instance" or "group"; see `blocks.build_norm`.
        dropout: probability with which a layer drops a channel of its result. It adds noise to the hints, too, drawn for each
            network by itself: `blocks.without_dropout` takes it out of a pass.
        dims: 2 or 3.

    Convolutions start He-uniform with zero biases, norms as identity.

    Raises:
        ValueError: the width is no multiple of 4, or there is no such norm.

    Example:
        >>> network = FCDenseNet(in_channels=1, classes=2)
        >>> sum(p.numel() for p in network.parameters()), network.hint_channels("high")
        (1374194, (228, 192))
    """

    sites: ClassVar = {
        "low": ("first", "down0"),
        "mid": ("bottleneck",),
        "high": ("last layer of up3", "up4"),
        "high_symmetric": ("up3", "up4"),
    }
    halvings = 5

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        width: int = 48,
        norm: NormKind = "batch",
        dropout: float = 0.2,
        dims: int = 2,
    ) -> None:
        if width < _LAYERS or width % _LAYERS:
            raise ValueError(f"width is {width}, it must be a multiple of {_LAYERS}: every layer of a block grows its share")
        k, growth = width, width // _LAYERS
        super().__init__(
            in_channels,
            classes,
            dims=dims,
            channels={
                "first": k,
                "down0": 2 * k,
                "bottleneck": k,
                "last layer of up3": 5 * k - growth,
                "up3": 5 * k,
                "up4": 4 * k,
            },
        )
        block = partial(_DenseBlock, growth=growth, norm=norm, dropout=dropout, dims=dims)
        transition = partial(_TransitionDown, norm=norm, dropout=dropout, dims=dims)
        self.first = CONVOLUTION[dims](in_channels, k, 3, padding=1)
        self.down = nn.ModuleList(block(n * k) for n in (1, 2, 3, 4, 5))
        self.transition_down = nn.ModuleList(transition(n * k) for n in (2, 3, 4, 5, 6))
        self.bottleneck = block(6 * k)
        self.transition_up = nn.ModuleList(_TRANSPOSED[dims](k, k, 3, stride=2) for _ in range(self.halvings))
        self.up = nn.ModuleList(block(n * k) for n in (7, 6, 5, 4, 3))
        self.out = CONVOLUTION[dims](4 * k, classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                init.kaiming_uniform_(parameter)
            elif name.endswith("bias"):
                init.zeros_(parameter)

    def _segment(self, images: Tensor, hints: Hints) -> Tensor:
        x, skips = hints("first", convolve(images, self.first.weight, self.first.bias)), []
        for number, (block, transition) in enumerate(zip(self.down, self.transition_down, strict=True)):
            _, grown = block(x)
            skips.append(hints(f"down{number}", torch.cat([x, grown], 1)))
            x = transition(skips[-1])
        _, x = self.bottleneck(x)
        hints("bottleneck", x)
        for number, (transition, block) in enumerate(zip(self.transition_up, self.up, strict=True)):
            skip = skips.pop()
            entering = torch.cat([_cut(transition(x), skip.shape[2:]), skip], 1)
            read, x = block(entering)
            hints(f"last layer of up{number}", read)
            whole = hints(f"up{number}", torch.cat([entering, x], 1))
        return mix_channels(whole, self.out.weight, self.out.bias)


class _DenseBlock(nn.Module):
    """Layers that each read the input and the results of all layers before."""

    def __init__(self, in_channels: int, *, growth: int, norm: NormKind, dropout: float, dims: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _Layer(in_channels + n * growth, growth, norm=norm, dropout=dropout, dims=dims) for n in range(_LAYERS)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (B, in_channels, *spatial), what the last layer reads, and what all layers have grown, without the input."""
        grown: list[Tensor] = []
        for layer in self.layers:
            if grown:
                x = torch.cat([x, grown[-1]], 1)
            grown.append(layer(x))
        return x, torch.cat(grown, 1)


class _Layer(nn.Module):
    """Norm, ReLU, 3x3 convolution, dropout."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: NormKind, dropout: float, dims: int) -> None:
        super().__init__()
        self.norm = build_norm(norm, in_channels, dims)
        self.conv = CONVOLUTION[dims](in_channels, out_channels, 3, padding=1)
        self.dropout = ChannelDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels, *spatial)."""
        x = functional.relu(self.norm(x), inplace=True)
        x = self.dropout(convolve(x, self.conv.weight, self.conv.bias))
        return x


class _TransitionDown(nn.Module):
    """Norm, ReLU, 1x1 convolution, dropout, max-pooling."""

    def __init__(self, channels: int, *, norm: NormKind, dropout: float, dims: int) -> None:
        super().__init__()
        self.norm = build_norm(norm, channels, dims)
        self.conv = CONVOLUTION[dims](channels, channels, 1)
        self.dropout = ChannelDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, *spatial) -> (B, channels, *spatial / 2)."""
        x = functional.relu(self.norm(x), inplace=True)
        return max_pool(self.dropout(mix_channels(x, self.conv.weight, self.conv.bias)))


def _cut(x: Tensor, size: Sequence[int]) -> Tensor:
    """`x` (B, C, *spatial), which is one voxel too long at most, without the last along such an axis."""
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x
