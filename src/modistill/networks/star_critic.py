"""The critic of StarGAN, which judges a slice and says of which modality it is, with the widths of UTAD-Net.

Choi et al., CVPR 2018 (https://arxiv.org/abs/1711.09020). `k` is the width, 64 by default, on slices of 128x128:

=======  ======================================  ==========  ===========
layer    what                                    channels    side of 128
=======  ======================================  ==========  ===========
conv1    4x4, stride 2                           1 -> k      64
conv2 …  4x4, stride 2, twice the channels       k -> 2k …   32 …
conv6    4x4, stride 2                           16k -> 32k  2
realism  3x3, no bias                            32k -> 1    2
name     2x2: all that is left, no bias          32k -> n    1
=======  ======================================  ==========  ===========

No norm; LeakyReLU after conv1 to conv6, of slope 0.001 after the first and 0.01 after the others (StarGAN: 0.01 everywhere).
Slices of other sides have as many layers as leave two or three voxels.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from modistill.errors import ModelError
from modistill.networks.convolution import CONVOLUTION, channels_last

__all__ = ["StarCritic"]


class StarCritic(nn.Module):
    """Realism and modality of slices.

    Args:
        modalities: number of those it tells apart.
        width: channels of the first layer (`k` of the table).
        side: voxels of a slice along every axis, 8 or more.
        dims: 2 for slices, 3 for volumes.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     critic = StarCritic()
        ...     realism, names = critic(torch.empty(2, 1, 128, 128))
        >>> sum(p.numel() for p in critic.parameters()), tuple(realism.shape), tuple(names.shape)
        (44751808, (2, 1, 2, 2), (2, 4))
    """

    def __init__(self, modalities: int = 4, *, width: int = 64, side: int = 128, dims: int = 2) -> None:
        super().__init__()
        layers = side.bit_length() - 2  # log2(side) - 1, rounded down
        if side < 8 or side % 2**layers:
            raise ValueError(f"a critic of slices of {side} voxels: halved {layers} times, they must leave whole voxels")
        self.size, convolution = (1, *(side,) * dims), CONVOLUTION[dims]
        widths = [1, *(width * 2**layer for layer in range(layers))]
        self.layers = nn.ModuleList(convolution(i, o, 4, stride=2, padding=1) for i, o in pairwise(widths))
        self.realism = convolution(widths[-1], 1, 3, padding=1, bias=False)
        self.name = convolution(widths[-1], modalities, side // 2**layers, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of images (B, 1, *spatial): a map of realism (B, 1, *left), and logits (B, modalities) of what they are.

        Raises:
            ModelError: images of another size.
        """
        if tuple(images.shape[1:]) != self.size:
            found, read = ("x".join(map(str, size)) for size in (images.shape[1:], self.size))
            raise ModelError(f"images of {found}, the critic reads {read}", remedy="square patches of method.side voxels")
        x = channels_last(images)
        for number, layer in enumerate(self.layers):
            x = leaky_relu(layer(x), 0.01 if number else 0.001)
        return self.realism(x), self.name(x).flatten(1)
