"""The network of nnU-Net: strided convolutions down, transposed ones up, and logits at every scale of the way up.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 2021
(https://doi.org/10.1038/s41592-020-01008-z), as its second version builds it (Apache-2.0) for images of 1 mm isotropic voxels.
`k` is the width, 32 by default, and `s` counts the scales from 0:

=========  ==========================================  ============
part       channels                                    resolution
=========  ==========================================  ============
encoder s  k 2^(s-1) -> k 2^s -> k 2^s                 1/2^s
up s       k 2^(s+1) -> k 2^s                          1/2^s
decoder s  up s, encoder s: 2 k 2^s -> k 2^s -> k 2^s  1/2^s
head s     k 2^s -> classes                            1/2^s
=========  ==========================================  ============

with no scale wider than 320 channels (512 in 2D). Encoder and decoder stages are two 3x3x3 convolutions, each followed by
instance norm and LeakyReLU (slope 0.01); the first convolution of an encoder stage but the topmost has stride 2. `up` is a
2x2x2 transposed convolution of stride 2, `head` a 1x1x1 convolution. At 128x128x128 voxels, six stages end in 4x4x4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.networks.blocks import NORM
from modistill.networks.convolution import CONVOLUTION, channels_last, convolve, convolve_concatenated
from modistill.networks.norm import norm_activation

__all__ = ["NNUNet"]

_SLOPE = 0.01
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_WIDEST = {2: 512, 3: 320}


class NNUNet(nn.Module):
    """Logits of every class for every voxel, in two or three dimensions, at any size.

    Axes that are no multiples of 2^(stages-1) voxels are filled up with zeros at their end, and the logits are cut back. Where
    the lowest stage would be a single voxel, which instance norm cannot read, the last axis is filled up to two.

    Args:
        in_channels: number of modalities it reads.
        classes: number of classes, the background included.
        width: channels of the first stage.
        dims: 2 or 3.
        stages: number of scales, 2 or more.

    Convolutions start Kaiming-normal with zero biases, norms as identity.

    Raises:
        ValueError: fewer than two stages.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     network = NNUNet(in_channels=4, classes=4)
        >>> sum(p.numel() for p in network.parameters())
        31199796
    """

    def __init__(self, in_channels: int, classes: int, width: int = 32, dims: int = 3, stages: int = 6) -> None:
        super().__init__()
        if stages < 2:
            raise ValueError(f"stages is {stages}, 2 or more are needed")
        self.in_channels, self.classes, self.dims, self.stages = in_channels, classes, dims, stages
        channels = [min(width * 2**s, _WIDEST[dims]) for s in range(stages)]
        self._channels: list[int] = channels
        stage, scales = partial(_Stage, dims=dims), range(stages - 1)
        self.encoder = nn.ModuleList(
            [stage(in_channels, channels[0]), *(stage(channels[s], channels[s + 1], stride=2) for s in scales)]
        )
        self.up = nn.ModuleList(_TRANSPOSED[dims](channels[s + 1], channels[s], 2, stride=2) for s in scales)
        self.decoder = nn.ModuleList(stage(2 * channels[s], channels[s]) for s in scales)
        self.heads = nn.ModuleList(CONVOLUTION[dims](channels[s], classes, 1) for s in scales)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, *spatial) from images (B, in_channels, *spatial). Raises as `at_all_scales`."""
        return self.at_all_scales(images)[0]

    def at_all_scales(self, images: Tensor) -> list[Tensor]:
        """Logits of the `stages` - 1 scales of the decoder, the full resolution first.

        Returns:
            (B, classes, *spatial), (B, classes, *spatial / 2), ...; sizes are rounded up.

        Raises:
            ModelError: other channels or axes than the network reads.
        """
        return self._decoded(self.maps(images), images.shape[2:])

    def with_latent(self, images: Tensor, above: int = 0) -> tuple[Tensor, list[Tensor]]:
        """A map of the encoder, and the logits as `at_all_scales`.

        Args:
            images: (B, in_channels, *spatial).
            above: how many stages above the lowest the map is taken: 0 is the bottleneck.

        Returns:
            (B, channels, *spatial / 2^(stages - 1 - above)), rounded up, and the logits.

        Raises:
            ModelError: other channels or axes than the network reads.
        """
        maps = self.maps(images)
        return maps[-1 - above], self._decoded(maps, images.shape[2:])

    def latent_channels(self, above: int = 0) -> int:
        """Channels of the map that `with_latent` gives."""
        return self._channels[-1 - above]

    def maps(self, images: Tensor) -> list[Tensor]:
        """What each stage of the encoder makes of images (B, in_channels, *spatial), the topmost first. Raises as above."""
        channels, *size = images.shape[1:]
        if channels != self.in_channels or len(size) != self.dims:
            raise ModelError(
                f"images of {channels} channels and {len(size)} axes, the network reads {self.in_channels} and {self.dims}",
                remedy="give the modalities the model was trained with",
            )
        x, maps = channels_last(self.filled_up(images)), []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        return maps

    def _decoded(self, maps: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        *skips, x = maps
        logits = []
        for s in reversed(range(self.stages - 1)):
            x = self.decoder[s](self.up[s](x), skips.pop())
            logits.append(_cut(self.heads[s](x), [-(-n // 2**s) for n in size]))
        return logits[::-1]

    def filled_up(self, images: Tensor) -> Tensor:
        """Images (B, channels, *spatial) with zeros at the end of the axes that cannot be halved `stages` - 1 times."""
        unit = 2 ** (self.stages - 1)
        wanted = [-(-n // unit) * unit for n in images.shape[2:]]
        if max(wanted) == unit:
            wanted[-1] *= 2
        ends = [(0, to - n) for n, to in zip(images.shape[2:], wanted, strict=True)]
        return functional.pad(images, [number for end in reversed(ends) for number in end])


def _cut(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first voxels of (B, channels, *spatial) along every axis."""
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x


class _Stage(nn.Module):
    """Twice convolution, instance norm and LeakyReLU. Several maps are read as if concatenated."""

    def __init__(self, in_channels: int, out_channels: int, *, dims: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = CONVOLUTION[dims](in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm1 = NORM[dims](out_channels, affine=True)
        self.conv2 = CONVOLUTION[dims](out_channels, out_channels, 3, padding=1)
        self.norm2 = NORM[dims](out_channels, affine=True)

    def forward(self, *maps: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels, *spatial / stride)."""
        x = convolve_concatenated(maps, self.conv1.weight, stride=self.stride)
        x = norm_activation(x, bias=self.conv1.bias, weight=self.norm1.weight, shift=self.norm1.bias, slope=_SLOPE)
        x = convolve(x, self.conv2.weight)
        return norm_activation(x, bias=self.conv2.bias, weight=self.norm2.weight, shift=self.norm2.bias, slope=_SLOPE)
