"""A projector: from a latent to the features in which two of them are compared, voxel by voxel.

Barlow Twins (Zbontar et al., ICML 2021, https://arxiv.org/abs/2103.03230) compares images after linear layers without bias, all
but the last followed by batch norm and ReLU:

    x -> W_1 x -> ReLU(norm(W_1 x)) -> W_2 ... -> W_K ...

There, three layers of 8192 features each. Here the layers are 1x1x1 convolutions: voxels stay voxels, and are what a norm
averages over. From 320 channels, `widths` of (320, 320, 320) have 0.31 million parameters, (2048, 2048, 2048) 9.05 million and
the original ones 136.9 million, four times a whole nnU-Net. (128, 128) are as many features as a batch of two latents of
4x4x4 has voxels: nearly each of them can tell something else (see `losses.barlow`).

It belongs to training: the student that is kept does without.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from modistill.errors import ModelError
from modistill.networks.blocks import NormKind, build_norm
from modistill.networks.convolution import CONVOLUTION

__all__ = ["VoxelProjector"]


class VoxelProjector(nn.Module):
    """1x1x1 convolutions without bias; norm and ReLU between them, nothing after the last.

    Args:
        in_channels: of the latent.
        widths: channels after each convolution, the last those of the result.
        norm: "batch", as in Barlow Twins, "instance" or "group"; see `blocks.build_norm`. A batch norm is that of each rank.
        dims: 2 or 3.

    Raises:
        ValueError: no widths, or an unknown norm.

    Example:
        >>> import torch
        >>> projector = VoxelProjector(320, (128, 128))
        >>> tuple(projector(torch.randn(2, 320, 4, 4, 4)).shape), sum(p.numel() for p in projector.parameters())
        ((2, 128, 4, 4, 4), 57600)
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int] = (128, 128), *, norm: NormKind = "batch", dims: int = 3
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("a projector without widths; give the channels of one layer or more, such as (128, 128)")
        self.in_channels, self.dims = in_channels, dims
        every = zip((in_channels, *widths), widths, strict=False)
        self.layers = nn.ModuleList(CONVOLUTION[dims](before, after, 1, bias=False) for before, after in every)
        self.norms = nn.ModuleList(build_norm(norm, width, dims) for width in widths[:-1])

    def forward(self, latent: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, widths[-1], *spatial).

        Raises:
            ModelError: other channels or axes than the projector reads.
        """
        channels, *size = latent.shape[1:]
        if channels != self.in_channels or len(size) != self.dims:
            raise ModelError(
                f"a latent of {channels} channels and {len(size)} axes, the projector reads {self.in_channels} and {self.dims}",
                remedy="build it for the network whose latent it reads",
            )
        for layer, norm in zip(self.layers, self.norms, strict=False):
            latent = relu(norm(layer(latent)), inplace=True)
        last: Tensor = self.layers[-1](latent)
        return last
