"""The generator of UTAD-Net: a slice and its tumour go through two encoders, meet once, and leave through two decoders.

Layers as in the authors' code (https://github.com/scut-HC/UTAD-Net); `k` is the width, 64 by default, n the number of
modalities:

=======  =================================================================  ==================  ==========
part     layers                                                             channels            resolution
=======  =================================================================  ==================  ==========
encoder  4 levels of 2 units, each level followed by max pooling            n + 1 -> k ... 8k   1 ... 1/8
         2 units                                                            8k -> 16k           1/16
fusion   sum, product and maximum of both encoders' lowest maps, side by    48k -> 16k -> 16k   1/16
         side; 2 x (3x3 convolution, norm with learned scale and shift,
         LeakyReLU of slope 0.1)
decoder  4 levels: bilinear x2, 1 unit, beside its own encoder's skip,      16k -> 8k ... k     1/8 ... 1
         2 units
         1x1 convolution, tanh                                              k -> 1              1
=======  =================================================================  ==================  ==========

A unit is a 3x3 convolution, an instance norm without learned parameters and LeakyReLU (slope 0.01). Which modality is wanted
enters as n constant maps beside the image, here alone, of which the norm of the first unit leaves what the zeros around the
image make of it: a frame of one voxel. `first_norm=False` takes that norm away, so that the code is not erased.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.nn.functional import leaky_relu, one_hot
from torch.nn.modules.batchnorm import _NormBase

from modistill.errors import ModelError
from modistill.networks.blocks import build_norm, resize_linearly
from modistill.networks.convolution import CONVOLUTION, channels_last, convolve, convolve_concatenated, max_pool, mix_channels
from modistill.networks.norm import norm_activation

__all__ = ["Scheme", "Translated", "TwoBranchGenerator", "WholeSlice"]

Scheme = Literal["a", "b", "c", "d"]


class Translated(NamedTuple):
    """What the generator makes of a batch of slices.

    Attributes:
        whole: (B, 1, *spatial) the slice in the other modality, in (-1, 1).
        tumour: (B, 1, *spatial) its tumour alone; None without a tumour decoder.
        fused: (B, 16k, *spatial / 2^levels) the map in which the branches meet.
    """

    whole: Tensor
    tumour: Tensor | None
    fused: Tensor


class TwoBranchGenerator(nn.Module):
    """Both branches.

    Args:
        modalities: number of those it can be asked for.
        width: channels of the first level (`k` of the table).
        levels: how often a map is halved.
        scheme: "a" for both branches, "b" for the whole slice alone, "c" without the tumour's encoder (its decoder reads the
            whole slice's maps), "d" without the tumour's decoder.
        first_norm: whether the first unit of an encoder has a norm.
        fusion_norm: "batch" or "instance".
        dims: 2 for slices, 3 for volumes (which the paper has not).

    Convolutions start as Kaiming's normal, biases at 0, scales of norms as N(1, 0.02^2).

    Example:
        >>> with torch.device("meta"):
        ...     sizes = {s: sum(p.numel() for p in TwoBranchGenerator(scheme=s).parameters()) for s in "abcd"}
        >>> sizes
        {'a': 106783874, 'b': 34514497, 'c': 50184642, 'd': 91113729}
    """

    def __init__(
        self,
        modalities: int = 4,
        *,
        width: int = 64,
        levels: int = 4,
        scheme: Scheme = "a",
        first_norm: bool = True,
        fusion_norm: Literal["batch", "instance"] = "batch",
        dims: int = 2,
    ) -> None:
        super().__init__()
        if scheme not in ("a", "b", "c", "d"):
            raise ValueError(f"no scheme {scheme!r}: a, b, c or d")
        self.whole = WholeSlice(
            modalities,
            width=width,
            levels=levels,
            fused=scheme in "ad",
            first_norm=first_norm,
            fusion_norm=fusion_norm,
            dims=dims,
        )
        self.tumour_decoder = Decoder(width, levels, dims) if scheme in "ac" else None
        initialise(self)

    def forward(self, images: Tensor, tumour: Tensor, wanted: Tensor) -> Translated:
        """Slices in another modality.

        Args:
            images: (B, 1, *spatial) in [-1, 1], sides multiples of 2^levels.
            tumour: (B, 1, *spatial), what the tumour's encoder sees; a generator without one looks at nothing of it.
            wanted: (B,) index of the modality wanted.

        Raises:
            ModelError: sides that cannot be halved so often.
        """
        fused, skips, tumour_skips = self.whole.encode(images, tumour, wanted)
        alone = None if self.tumour_decoder is None else self.tumour_decoder(fused, tumour_skips)
        return Translated(self.whole.decoder(fused, skips), alone, fused)


class WholeSlice(nn.Module):
    """What it takes to make the whole slice: all but the tumour's decoder. See `TwoBranchGenerator`.

    Args:
        modalities: see there.
        width: see there.
        levels: see there.
        fused: whether there is an encoder of the tumour, and a fusion of both.
        first_norm: see there.
        fusion_norm: see there.
        dims: see there.
    """

    def __init__(
        self,
        modalities: int,
        *,
        width: int,
        levels: int,
        fused: bool,
        first_norm: bool,
        fusion_norm: Literal["batch", "instance"],
        dims: int,
    ) -> None:
        super().__init__()
        self.modalities, self.levels = modalities, levels
        encoder = partial(Encoder, modalities + 1, width, levels, dims, first_norm=first_norm)
        self.encoder = encoder()
        self.tumour_encoder = encoder() if fused else None
        self.fusion = Fusion(width * 2**levels, fusion_norm, dims) if fused else None
        self.decoder = Decoder(width, levels, dims)

    def forward(self, images: Tensor, tumour: Tensor, wanted: Tensor) -> Tensor:
        """(B, 1, *spatial) in (-1, 1); see `TwoBranchGenerator`."""
        fused, skips, _ = self.encode(images, tumour, wanted)
        made: Tensor = self.decoder(fused, skips)
        return made

    def encode(self, images: Tensor, tumour: Tensor, wanted: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The map in which the branches meet, and the skips of either branch (without a second one twice the same)."""
        size = images.shape[2:]
        if any(n % 2**self.levels for n in size):
            raise ModelError(
                f"slices of {'x'.join(map(str, size))} voxels cannot be halved {self.levels} times",
                remedy=f"sides that are multiples of {2**self.levels}",
            )
        code = one_hot(wanted, self.modalities).to(images.dtype)
        code = code.reshape(*code.shape, *(1,) * len(size)).expand(-1, -1, *size)
        lowest, skips = self.encoder(torch.cat([images, code], 1))
        if self.tumour_encoder is None or self.fusion is None:
            return lowest, skips, skips
        of_tumour, tumour_skips = self.tumour_encoder(torch.cat([tumour, code], 1))
        return self.fusion(lowest, of_tumour), skips, tumour_skips


class Unit(nn.Module):
    """A 3x3 convolution of maps as if concatenated, instance norm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, dims: int, *, norm: bool = True) -> None:
        super().__init__()
        self.norm = norm
        self.conv = CONVOLUTION[dims](in_channels, out_channels, 3, padding=1)

    def forward(self, *maps: Tensor) -> Tensor:
        """(B, in_channels, *spatial), in parts -> (B, out_channels, *spatial)."""
        weight, bias = self.conv.weight, self.conv.bias
        if not self.norm:
            return leaky_relu(convolve_concatenated(maps, weight, bias), 0.01)
        return norm_activation(convolve_concatenated(maps, weight), bias=bias, slope=0.01)


class Encoder(nn.Module):
    """Maps of all levels and the lowest one."""

    def __init__(self, in_channels: int, width: int, levels: int, dims: int, *, first_norm: bool = True) -> None:
        super().__init__()
        widths = [in_channels, *(width * 2**level for level in range(levels + 1))]
        self.levels = nn.ModuleList(
            nn.Sequential(Unit(i, o, dims, norm=first_norm or number > 0), Unit(o, o, dims))
            for number, (i, o) in enumerate(pairwise(widths))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, in_channels, *spatial) -> the lowest map, and the skips from the first level on."""
        first, *deeper = self.levels
        skips = [first(channels_last(x))]
        for level in deeper:
            skips.append(level(max_pool(skips[-1])))
        return skips.pop(), skips


class Fusion(nn.Module):
    """The mixed fusion of Hi-Net: Zhou et al., IEEE TMI 2020 (https://arxiv.org/abs/2002.05000)."""

    def __init__(self, channels: int, norm: Literal["batch", "instance"], dims: int) -> None:
        super().__init__()
        convolution = CONVOLUTION[dims]
        self.conv1, self.norm1 = convolution(3 * channels, channels, 3, padding=1), build_norm(norm, channels, dims)
        self.conv2, self.norm2 = convolution(channels, channels, 3, padding=1), build_norm(norm, channels, dims)

    def forward(self, whole: Tensor, tumour: Tensor) -> Tensor:
        """Two maps (B, C, *spatial) as one of that shape."""
        parts = (whole + tumour, whole * tumour, torch.maximum(whole, tumour))
        x = leaky_relu(self.norm1(convolve_concatenated(parts, self.conv1.weight, self.conv1.bias)), 0.1)
        return leaky_relu(self.norm2(convolve(x, self.conv2.weight, self.conv2.bias)), 0.1)


class Decoder(nn.Module):
    """An image from the fused map and the skips of one encoder."""

    def __init__(self, width: int, levels: int, dims: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in reversed(range(levels))]
        self.up = nn.ModuleList(Unit(2 * k, k, dims) for k in widths)
        self.levels = nn.ModuleList(nn.ModuleList([Unit(2 * k, k, dims), Unit(k, k, dims)]) for k in widths)
        self.out = CONVOLUTION[dims](width, 1, 1)

    def forward(self, fused: Tensor, skips: list[Tensor]) -> Tensor:
        """(B, 1, *spatial) in (-1, 1)."""
        x = fused
        for up, units, skip in zip(self.up, self.levels, reversed(skips), strict=True):
            merge, refine = units.children()
            x = refine(merge(skip, up(resize_linearly(x, skip.shape[2:], align_corners=True))))
        return mix_channels(x, self.out.weight, self.out.bias).tanh()


def initialise(network: nn.Module) -> None:
    """The weights with which a generator, or a part of it, starts."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, _NormBase) and module.affine:
            init.normal_(module.weight, 1.0, 0.02)
            init.zeros_(module.bias)
