"""The hierarchical critic of HAD-Net: it judges a segmentation together with the maps it was made from.

Vadacchino et al., HAD-Net (MIDL 2021, https://arxiv.org/abs/2103.16617), section 2.2, with the widths of its published code
(`k` is the width of the U-Nets, 32 by default):

=====  =======================================  =====  ==========
layer  input                                    out    resolution
=====  =======================================  =====  ==========
conv1  logits, available modalities             4k     1/2
conv2  conv1, d2, u3 resized to d2              8k     1/4
conv3  conv2, d3, u4 resized to d3              16k    1/8
conv4  conv3, d4, c5 resized to d4              32k    1/16
out    conv4                                    1      1/16 - 1
=====  =======================================  =====  ==========

Convolutions are 4x4x4; conv1 to conv4 have stride 2 and LeakyReLU (slope 0.2), conv2 to conv4 an instance norm without learned
parameters before it; `out` has stride 1, no bias and no activation. Without the hierarchy (AD-Net) the maps are left out, and
either the output widths or the input widths (conv2 to conv4: 8k, 16k, 32k) can be kept; the paper leaves open which.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from modistill.errors import ModelError
from modistill.networks.convolution import CONVOLUTION, channels_last, convolve, convolve_concatenated
from modistill.networks.norm import norm_activation
from modistill.networks.unet import Hierarchy

__all__ = ["HierarchicalCritic"]


class HierarchicalCritic(nn.Module):
    """One logit for every patch of a segmentation: near 1 where it looks like the teacher's, near 0 like the student's.

    Args:
        in_channels: classes plus available modalities.
        width: width of the U-Nets whose features it reads.
        dims: 2 or 3.
        hierarchical: read the U-Net's features; False gives the critic of AD-Net, which sees the segmentation only.
        slope: of LeakyReLU for negative values.
        widths: without the hierarchy, whether the layers keep the widths of their "outputs" or of their "inputs".

    Weights start as PyTorch's convolutions do.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     critic = HierarchicalCritic(in_channels=7)
        >>> sum(p.numel() for p in critic.parameters())
        88205184
    """

    def __init__(
        self,
        in_channels: int,
        width: int = 32,
        dims: int = 3,
        hierarchical: bool = True,
        slope: float = 0.2,
        widths: Literal["outputs", "inputs"] = "outputs",
    ) -> None:
        super().__init__()
        self.in_channels, self.dims, self.hierarchical, self.slope = in_channels, dims, hierarchical, slope
        k, convolution = width, CONVOLUTION[dims]
        w1, w2, w3 = (4 * k, 8 * k, 16 * k) if hierarchical or widths == "outputs" else (8 * k, 16 * k, 32 * k)
        shared = 2 if hierarchical else 1  # the maps of the U-Net double what a layer reads
        self.conv1 = convolution(in_channels, w1, 4, stride=2, padding=1)
        self.conv2 = convolution(shared * w1, w2, 4, stride=2, padding=1)
        self.conv3 = convolution(shared * w2, w3, 4, stride=2, padding=1)
        self.conv4 = convolution(shared * w3, 32 * k, 4, stride=2, padding=1)
        self.out = convolution(32 * k, 1, 4, padding=1, bias=False)

    def forward(self, logits: Tensor, images: Tensor, features: Hierarchy) -> Tensor:
        """Patch logits (B, 1, n/16 - 1 per axis).

        Args:
            logits: (B, classes, *spatial) of the teacher or the student, before the softmax.
            images: (B, modalities, *spatial); the available modalities, whoever made the logits.
            features: of the network that made the logits.

        Raises:
            ModelError: an axis below 32 voxels, or other channels than `in_channels`.
        """
        self._check(logits, images)
        f = features
        shown = channels_last(logits), channels_last(images)
        x = leaky_relu(convolve_concatenated(shown, self.conv1.weight, self.conv1.bias, stride=2), self.slope, inplace=True)
        for conv, encoder, decoder in (self.conv2, f.d2, f.u3), (self.conv3, f.d3, f.u4), (self.conv4, f.d4, f.c5):
            parts = (x, encoder, decoder) if self.hierarchical else (x,)
            x = convolve_concatenated(parts, conv.weight, stride=2)
            x = norm_activation(x, bias=conv.bias, slope=self.slope)
        return convolve(x, self.out.weight)

    def _check(self, logits: Tensor, images: Tensor) -> None:
        channels = logits.shape[1] + images.shape[1]
        if channels != self.in_channels:
            raise ModelError(
                f"{channels} channels (classes and modalities), the critic reads {self.in_channels}",
                remedy="build the critic with in_channels = classes + available modalities",
            )
        size = logits.shape[2:]
        if min(size) < 32:
            raise ModelError(
                f"images of {'x'.join(map(str, size))} voxels are too small for the critic: every axis needs 32",
                remedy="choose a larger patch",
            )
