"""The PatchGAN critic: it judges every patch of 70x70 pixels of an image, and nothing larger.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (CVPR 2017, https://arxiv.org/abs/1611.07004),
as CycleGAN uses it (Zhu et al., ICCV 2017, https://arxiv.org/abs/1703.10593) and CMEDL after it (Jiang et al., IEEE TMI 2022,
https://arxiv.org/abs/2107.07985). `k` is the width, 64 by default:

=====  ========  ======  ====  ===============  ==========  ===========
layer  channels  stride  norm  receptive field  axis of n   axis of 256
=====  ========  ======  ====  ===============  ==========  ===========
conv1  in -> k   2       no    4                n/2         128
conv2  k -> 2k   2       yes   10               n/4         64
conv3  2k -> 4k  2       yes   22               n/8         32
conv4  4k -> 8k  1       yes   46               n/8 - 1     31
out    8k -> 1   1       no    70               n/8 - 2     30
=====  ========  ======  ====  ===============  ==========  ===========

Convolutions are 4x4 with one voxel of zeros around; all but the last are followed by LeakyReLU (slope 0.2), where the table
says so after an instance norm without learned parameters and without running statistics. (Its mean and variance are those of
the whole image: strictly, a patch is seen against its image.) Every convolution has a bias; in front of a norm it cancels, and
receives a gradient of zero. There is no activation at the end, the loss decides.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from modistill.errors import ModelError
from modistill.networks.convolution import CONVOLUTION, channels_last, convolve
from modistill.networks.norm import norm_activation
from modistill.networks.resnet_translator import initialise

__all__ = ["PatchCritic"]


class PatchCritic(nn.Module):
    """One logit for every patch of an image: large where it looks real, small where it looks made.

    Args:
        in_channels: of the images it reads.
        width: channels of the first layer (`k` of the table).
        dims: 2 or 3.
        slope: of LeakyReLU for negative values.

    Weights start from N(0, 0.02), biases from 0.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     critic, image = PatchCritic(), torch.empty(1, 1, 256, 256)
        >>> sum(p.numel() for p in critic.parameters()), tuple(critic(image).shape)
        (2762689, (1, 1, 30, 30))
    """

    def __init__(self, in_channels: int = 1, *, width: int = 64, dims: int = 2, slope: float = 0.2) -> None:
        super().__init__()
        self.in_channels, self.dims, self.slope = in_channels, dims, slope
        k, convolution = width, CONVOLUTION[dims]
        self.conv1 = convolution(in_channels, k, 4, stride=2, padding=1)
        self.conv2 = convolution(k, 2 * k, 4, stride=2, padding=1)
        self.conv3 = convolution(2 * k, 4 * k, 4, stride=2, padding=1)
        self.conv4 = convolution(4 * k, 8 * k, 4, padding=1)
        self.out = convolution(8 * k, 1, 4, padding=1)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Patch logits (B, 1, n/8 - 2 per axis) of images (B, in_channels, *spatial); halves are rounded down.

        Raises:
            ModelError: other channels or axes than the critic reads, or an axis below 24 voxels.
        """
        self._check(images)
        x = leaky_relu(convolve(channels_last(images), self.conv1.weight, self.conv1.bias, stride=2), self.slope)
        for conv in self.conv2, self.conv3, self.conv4:
            x = norm_activation(convolve(x, conv.weight, stride=conv.stride[0]), bias=conv.bias, slope=self.slope)
        return convolve(x, self.out.weight, self.out.bias)

    def _check(self, images: Tensor) -> None:
        channels, *size = images.shape[1:]
        if channels != self.in_channels or len(size) != self.dims:
            raise ModelError(
                f"images of {channels} channels and {len(size)} axes, the critic reads {self.in_channels} and {self.dims}",
                remedy="give images of the modality it judges, alone",
            )
        if min(size) < 24:
            raise ModelError(
                f"images of {'x'.join(map(str, size))} voxels are too small for the critic: every axis needs 24",
                remedy="choose a larger patch",
            )
