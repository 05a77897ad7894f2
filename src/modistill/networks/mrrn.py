"""MRRN, the multiple resolution residually connected network: a feature stream that trades with residual streams of each scale.

Jiang et al., "Multiple Resolution Residually Connected Feature Streams for Automatic Lung Tumor Segmentation From CT Images",
IEEE TMI 2019 (https://doi.org/10.1109/TMI.2018.2857800), in its incremental form, after the full-resolution residual networks
of Pohlen et al. (CVPR 2017, https://arxiv.org/abs/1611.08323). The layers are those of the group's published code for organs of
the thorax (Jiang et al., https://arxiv.org/abs/2005.13690); they have the 38.92 M parameters that CMEDL prints (Jiang et al.,
IEEE TMI 2022, https://arxiv.org/abs/2107.07985).

A residual stream R keeps its resolution; the feature stream P goes down and up. They meet in residual connection units:

    Q  = c2(c1([pool(R), P]))          c1, c2: 3x3 convolution, batch norm, ReLU; max-pooling to the resolution of P
    R' = R + up(conv1x1(Q))            bilinear, to the resolution of R
    P' = Q

`k` is the width, 32 by default. R1 has k channels and resolution 1; R2, R3, R4 are what P is after down 1, 2, 3:

======  ======================  ==========  =====================================================================
block   channels of P           resolution  input and units, each named after its residual stream
======  ======================  ==========  =====================================================================
stem    in -> k                 1           images: convolution, norm, ReLU; then three residual units
split   k -> k                  1           stem: R1 = ReLU of its 1x1 convolution; P = stem
down 1  k -> 2k                 1/2         max-pooled P; units R1, R1, R1; P is R2 as well
down 2  2k -> 4k                1/4         max-pooled P; units R1, R2, R1; P is R3 as well
down 3  4k -> 8k                1/8         max-pooled P; units R1, R3, R2, R1; P is R4 as well
down 4  8k -> 16k               1/16        max-pooled P; units R1, R4, R3, R2, R1
up 3    16k -> 8k               1/8         P, resized; units R1, R3, R2, R1
up 2    8k -> 4k                1/4         P, resized; units R1, R2, R1
up 1    2k -> 2k                1/2         published: R2; fixed: P (4k), resized; units R1, R1, R1
merge   2k + k -> k             1           P, resized, and R1: convolution, norm, ReLU; then three residual units
out     k -> classes            1           merge; a 1x1 convolution, no activation
======  ======================  ==========  =====================================================================

A residual unit adds to a map its 3x3 convolution, norm and ReLU. Maps of the sites:

============  ================================================  ==========================
site          maps                                              at 256x256, k = 32
============  ================================================  ==========================
low           stem's convolution and its first residual unit    32x256x256, twice
mid           down 4                                            512x16x16
high          P of up 2, resized for up 1; P of up 1, resized   128x128x128, 64x256x256
high_outputs  up 1; merge                                       64x128x128, 32x256x256
============  ================================================  ==========================

`high` has the sizes that CMEDL prints, which the result of no unit has. In the published wiring its first map is not on the way
to the logits: a hint there teaches up 2 and what lies before it. `high_outputs` is ours; both its maps are on the way.

Variants
    `variant="published"` is wired as the group's code is: up 1 reads R2 in place of P, and what R4 becomes in down 4, and R3 in
    up 3, is read by nobody: the 164,224 parameters of the 1x1 convolutions that lead there get no gradient.
    `variant="fixed"` is ours: up 1 reads P, and after each of up 3, up 2 and up 1 the residual stream of the same size (R4, R3,
    R2) is added to P. None of its 38,953,282 parameters is idle.

Differs from the papers
    1. The published wiring: CMEDL does not mention it, but its number of parameters, to every printed digit, is that of this
       wiring and not of the other.
    2. CMEDL compares sites in its U-Net only. `low` and `mid` are what corresponds to them here.
    3. No initial weights are named; Kaiming's are our choice.
Other code of the group
    4. `dropout=0.5` and `align_corners=True` are what the group's code for the prostate has.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional, init

from modistill.networks.blocks import ChannelDropout, ConvNormReLU, NormKind, resize_linearly
from modistill.networks.convolution import CONVOLUTION, max_pool, mix_channels
from modistill.networks.hinted import HintedNetwork, Hints

__all__ = ["MRRN"]

_UNITS = {1: (1, 1, 1), 2: (1, 2, 1), 3: (1, 3, 2, 1), 4: (1, 4, 3, 2, 1)}  # level -> residual streams, one for each unit


class MRRN(HintedNetwork):
    """Logits of every class for every voxel, in two or three dimensions, from 16 voxels along every axis and 32 along one.

    Args:
        in_channels: number of modalities it reads.
        classes: number of classes, the background included.
        width: channels of the first scale (`k` of the table).
        norm: "batch", "instance" or "group"; see `blocks.build_norm`.
        dropout: probability with which a unit drops a channel of the residual stream it reads. CMEDL's lung code has none.
        dims: 2 or 3.
        variant: "published" or "fixed"; see the module.
        align_corners: whether interpolation keeps the centres of the outermost voxels in place (else their outer edges).

    Convolutions start Kaiming-normal with zero biases, norms as identity.

    Raises:
        ValueError: there is no such norm or variant.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     network = MRRN(in_channels=1, classes=2)
        >>> sum(p.numel() for p in network.parameters()), network.hint_channels("high")
        (38916418, (128, 64))
    """

    sites: ClassVar = {
        "low": ("stem.0", "stem.1"),
        "mid": ("down4",),
        "high": ("for up1", "for merge"),
        "high_outputs": ("up1", "merge"),
    }
    halvings = 4

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        width: int = 32,
        norm: NormKind = "batch",
        dropout: float = 0.0,
        dims: int = 2,
        variant: Literal["published", "fixed"] = "published",
        align_corners: bool = False,
    ) -> None:
        if variant not in ("published", "fixed"):
            raise ValueError(f"variant is {variant!r}, it must be published or fixed")
        k = width
        super().__init__(
            in_channels,
            classes,
            dims=dims,
            channels={
                "stem.0": k,
                "stem.1": k,
                "down4": 16 * k,
                "for up1": 4 * k,
                "for merge": 2 * k,
                "up1": 2 * k,
                "merge": k,
            },
        )
        self.variant, self.align_corners = variant, align_corners
        level = partial(_Level, width=k, dropout=dropout, align_corners=align_corners, norm=norm, dims=dims)
        convolution, residual = partial(ConvNormReLU, norm=norm, dims=dims), partial(_ResidualUnit, k, norm=norm, dims=dims)
        self.stem = nn.ModuleList([convolution(in_channels, k), residual(), residual(), residual()])
        self.split = CONVOLUTION[dims](k, k, 1)
        self.down = nn.ModuleList([level(1, k), level(2, 2 * k), level(3, 4 * k), level(4, 8 * k)])
        self.up = nn.ModuleList([level(3, 16 * k), level(2, 8 * k), level(1, 2 * k if variant == "published" else 4 * k)])
        self.merge = nn.ModuleList([convolution(3 * k, k), residual(), residual(), residual()])
        self.out = CONVOLUTION[dims](k, classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                init.kaiming_normal_(parameter)
            elif name.endswith("bias"):
                init.zeros_(parameter)

    def _segment(self, images: Tensor, hints: Hints) -> Tensor:
        x = images
        for number, unit in enumerate(self.stem):
            x = hints(f"stem.{number}", unit(x))
        streams: dict[int, Tensor] = {}
        for number, level in enumerate(self.down, start=1):
            streams[number] = x if number > 1 else functional.relu(mix_channels(x, self.split.weight, self.split.bias))
            x = level(max_pool(x), streams)
        hints("down4", x)
        for number, level in zip((3, 2, 1), self.up, strict=True):
            beside = streams[number + 1]
            x = hints(f"for up{number}", resize_linearly(x, beside.shape[2:], align_corners=self.align_corners))
            x = level(beside if number == 1 and self.variant == "published" else x, streams)
            if self.variant == "fixed":
                x = x + beside
            hints(f"up{number}", x)
        x = hints("for merge", resize_linearly(x, images.shape[2:], align_corners=self.align_corners))
        convolution, *residual_units = self.merge
        x = convolution(x, streams[1])
        for unit in residual_units:
            x = unit(x)
        return mix_channels(hints("merge", x), self.out.weight, self.out.bias)


class _Level(nn.Module):
    """The units of resolution 1 / 2^number, one after the other; the options are those of each."""

    def __init__(self, number: int, in_channels: int, *, width: int, **options: Any) -> None:
        super().__init__()
        self.streams = _UNITS[number]
        inputs = [in_channels, *(width * 2**number for _ in self.streams[1:])]
        self.units = nn.ModuleList(
            _ConnectionUnit(n, width * 2**number, width * 2 ** (stream - 1), scale=2 ** (number - stream + 1), **options)
            for n, stream in zip(inputs, self.streams, strict=True)
        )

    def forward(self, x: Tensor, streams: dict[int, Tensor]) -> Tensor:
        """(B, in_channels, *spatial) -> (B, width * 2^number, *spatial); the residual streams are replaced by the new ones."""
        for stream, unit in zip(self.streams, self.units, strict=True):
            x, streams[stream] = unit(x, streams[stream])
        return x


class _ConnectionUnit(nn.Module):
    """A residual connection unit: see the module.

    Args:
        in_channels: of P.
        channels: of Q.
        residual: channels of R.
        scale: of the resolution of R to that of P.
        dropout: probability of dropping a channel of the pooled R.
        align_corners: see `MRRN`.
        norm: see `MRRN`.
        dims: 2 or 3.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        residual: int,
        *,
        scale: int,
        dropout: float,
        align_corners: bool,
        norm: NormKind,
        dims: int,
    ) -> None:
        super().__init__()
        self.scale, self.align_corners = scale, align_corners
        self.dropout = ChannelDropout(dropout)
        self.conv1 = ConvNormReLU(residual + in_channels, channels, norm=norm, dims=dims)
        self.conv2 = ConvNormReLU(channels, channels, norm=norm, dims=dims)
        self.adjust = CONVOLUTION[dims](channels, residual, 1)

    def forward(self, p: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """P (B, in_channels, *spatial) and R (B, residual, *spatial * scale) -> P' (B, channels, *spatial) and R'."""
        pool = functional.max_pool3d if r.ndim == 5 else functional.max_pool2d
        q = self.conv2(self.conv1(self.dropout(pool(r, self.scale)), p))
        change = mix_channels(q, self.adjust.weight, self.adjust.bias)
        return q, r + resize_linearly(change, r.shape[2:], align_corners=self.align_corners)


class _ResidualUnit(nn.Module):
    """A map and its convolution, norm and ReLU, added: (B, channels, *spatial) -> the same."""

    def __init__(self, channels: int, *, norm: NormKind, dims: int) -> None:
        super().__init__()
        self.unit = ConvNormReLU(channels, channels, norm=norm, dims=dims)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        result: Tensor = x + self.unit(x)
        return result
