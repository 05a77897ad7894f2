"""The U-Net of CMEDL: five scales, upsampled by bilinear interpolation.

Ronneberger et al. (MICCAI 2015, https://arxiv.org/abs/1505.04597) as CMEDL has it (Jiang et al., IEEE TMI 2022,
https://arxiv.org/abs/2107.07985), which prints 13.39 M parameters; the layers are those of PSIGAN's published code, by the same
group (Jiang et al., IEEE TMI 2020, https://arxiv.org/abs/2007.09465). `k` is the width, 64 by default:

=====  ========================  ==========  ============================================
block  channels                  resolution  input
=====  ========================  ==========  ============================================
inc    in -> k -> k              1           images
down1  k -> 2k -> 2k             1/2         max-pooled inc
down2  2k -> 4k -> 4k            1/4         max-pooled down1
down3  4k -> 8k -> 8k            1/8         max-pooled down2
down4  8k -> 8k -> 8k            1/16        max-pooled down3
up1    8k + 8k -> 4k -> 4k       1/8         down3, and down4 resized to it
up2    4k + 4k -> 2k -> 2k       1/4         down2, and up1 resized to it
up3    2k + 2k -> k -> k         1/2         down1, and up2 resized to it
up4    k + k -> k -> k           1           inc, and up3 resized to it
out    k -> classes              1           up4; a 1x1 convolution, no activation
=====  ========================  ==========  ============================================

Every arrow but the last is a 3x3 convolution, batch norm and ReLU. Maps of the sites, after the ReLU:

====  ====================================  ==================
site  maps                                  at 256x256, k = 64
====  ====================================  ==================
low   inc.conv1, inc: its two convolutions  64x256x256, twice
mid   down4                                 512x16x16
high  up3, up4                              64x128x128, 64x256x256
====  ====================================  ==================

Differs from the paper
    1. It counts 33 layers with learned weights; these are 19 convolutions, or 37 with the norms. Its number of parameters, to
       every printed digit, and the sizes of its hints are these.
    2. It names no initial weights; they are those of PSIGAN's code.
Differs from PSIGAN's code
    3. Sizes that are no multiples of 16: a map is resized to the skip it meets, by interpolation.
    4. Logits come out for every number of classes, one included (there the code applies a sigmoid).
    5. Biases of convolutions start at zero. Those before a norm cancel.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from modistill.networks.blocks import ChannelDropout, ConvNormReLU, NormKind, normal_start, resize_linearly
from modistill.networks.convolution import CONVOLUTION, max_pool, mix_channels
from modistill.networks.hinted import HintedNetwork, Hints

__all__ = ["BilinearUNet"]


class BilinearUNet(HintedNetwork):
    """Logits of every class for every voxel, in two or three dimensions, from 16 voxels along every axis and 32 along one.

    Args:
        in_channels: number of modalities it reads.
        classes: number of classes, the background included.
        width: channels of the first scale (`k` of the table).
        norm: "batch", "instance" or "group"; see `blocks.build_norm`.
        dropout: probability with which a block drops a channel of its input; the first block drops none. The paper has none.
        dims: 2 or 3.
        align_corners: whether interpolation keeps the centres of the outermost voxels in place (else their outer edges).

    Convolutions start as N(0, 0.02^2) with zero biases; norms with scales N(1, 0.02^2) and shifts of zero.

    Raises:
        ValueError: there is no such norm.

    Example:
        >>> network = BilinearUNet(in_channels=1, classes=2)
        >>> sum(p.numel() for p in network.parameters()), network.hint_channels("high")
        (13394242, (64, 64))
    """

    sites: ClassVar = {"low": ("inc.conv1", "inc"), "mid": ("down4",), "high": ("up3", "up4")}
    halvings = 4

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        width: int = 64,
        norm: NormKind = "batch",
        dropout: float = 0.0,
        dims: int = 2,
        align_corners: bool = True,
    ) -> None:
        k = width
        super().__init__(
            in_channels, classes, dims=dims, channels={"inc.conv1": k, "inc": k, "down4": 8 * k, "up3": k, "up4": k}
        )
        self.align_corners = align_corners
        block = partial(_Block, norm=norm, dropout=dropout, dims=dims)
        self.inc = block(in_channels, k, dropout=0.0)
        self.down = nn.ModuleList([block(k, 2 * k), block(2 * k, 4 * k), block(4 * k, 8 * k), block(8 * k, 8 * k)])
        self.up = nn.ModuleList([block(16 * k, 4 * k), block(8 * k, 2 * k), block(4 * k, k), block(2 * k, k)])
        self.out = CONVOLUTION[dims](k, classes, 1)
        normal_start(self)

    def _segment(self, images: Tensor, hints: Hints) -> Tensor:
        first = hints("inc.conv1", self.inc.conv1(images))
        skips = [hints("inc", self.inc.conv2(first))]
        for block in self.down:
            skips.append(block(max_pool(skips[-1])))
        x = hints("down4", skips.pop())
        for number, block in enumerate(self.up, start=1):
            skip = skips.pop()
            x = hints(f"up{number}", block(skip, resize_linearly(x, skip.shape[2:], align_corners=self.align_corners)))
        return mix_channels(x, self.out.weight, self.out.bias)


class _Block(nn.Module):
    """Dropout, then twice convolution, norm and ReLU. Several maps are read as if concatenated."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: NormKind, dropout: float, dims: int) -> None:
        super().__init__()
        self.dropout = ChannelDropout(dropout)
        self.conv1 = ConvNormReLU(in_channels, out_channels, norm=norm, dims=dims)
        self.conv2 = ConvNormReLU(out_channels, out_channels, norm=norm, dims=dims)

    def forward(self, *maps: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels, *spatial)."""
        x: Tensor = self.conv2(self.conv1(*map(self.dropout, maps)))
        return x
