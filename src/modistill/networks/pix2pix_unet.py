"""The generator of pix2pix: a U-Net that halves an image until one pixel is left, and carries every scale across.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (CVPR 2017, https://arxiv.org/abs/1611.07004).
`k` is the width, 64 by default; there are as many scales as `halvings`, 8 for the paper's images of 256 pixels:

=========  ===================  ==========  ===============================================
layer      channels             resolution  followed by
=========  ===================  ==========  ===============================================
down1      in -> k              1/2         LeakyReLU
down2      k -> 2k              1/4         norm, LeakyReLU
down3      2k -> 4k             1/8         norm, LeakyReLU
down4      4k -> 8k             1/16        norm, LeakyReLU
down5 ...  8k -> 8k             1/32 ...    norm, LeakyReLU
down8      8k -> 8k             1/256       LeakyReLU; a norm of one pixel would be zero
up1        8k -> 8k             1/128       norm, dropout
up2, up3   8k + 8k -> 8k        1/64, 1/32  norm, dropout
up4        8k + 8k -> 8k        1/16        norm
up5        8k + 8k -> 4k        1/8         norm
up6        4k + 4k -> 2k        1/4         norm
up7        2k + 2k -> k         1/2         norm
out        k + k -> out         1           tanh; the only layer with a bias
=========  ===================  ==========  ===============================================

Every `down` is a 4x4 convolution of stride 2, every `up` and `out` a 4x4 transposed one, of the ReLU of its input: the map
below it and, from up2 on, beside it the encoder's of that size. LeakyReLU has slope 0.2. With h halvings there are h layers
down, and h - 1 up before the last; of those with 8k channels some are left out.

Differs from the paper
    1. There the innermost layer has a norm, too, which leaves nothing of a single pixel in a batch of one. The authors' PyTorch
       code (https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix) has none, as here.
    2. Biases in front of a norm, which cancel, are left out, and those of the first and innermost layer: as in that code.
    3. Images whose axes are no multiples of 2^h lie in the middle of one that is, with -1 around; the translation is cut back.
Differs from the PyTorch code
    4. There dropout spares the innermost decoder layer and follows the others of 8k channels. Here the first three have it, as
       in the paper and in its first code (https://github.com/phillipi/pix2pix).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.hardware import wide
from modistill.networks.blocks import NormKind, build_norm, in_the_middle, normal_start
from modistill.networks.convolution import CONVOLUTION, channels_last

__all__ = ["Pix2PixUNet"]

_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Pix2PixUNet(nn.Module):
    """Images of another modality, in [-1, 1], at any size.

    Args:
        in_channels: of the images it reads.
        out_channels: of the images it makes.
        width: channels of the first scale (`k` of the table).
        halvings: number of scales below the image, 2 or more.
        norm: "batch", "instance" or "group"; see `blocks.build_norm`.
        dropout: probability with which an element of the first three decoder layers is dropped, while training.
        dims: 2 or 3.

    Weights start from N(0, 0.02), scales of the norms from N(1, 0.02), biases and shifts from 0.

    Raises:
        ValueError: fewer than two halvings, or no such norm.

    Example:
        >>> with torch.device("meta"):
        ...     paper, of_slices = Pix2PixUNet(3, 3), Pix2PixUNet(halvings=7)
        >>> [sum(p.numel() for p in network.parameters()) for network in (paper, of_slices)]
        [54413955, 41822849]
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        width: int = 64,
        halvings: int = 8,
        norm: NormKind = "batch",
        dropout: float = 0.5,
        dims: int = 2,
    ) -> None:
        super().__init__()
        if halvings < 2:
            raise ValueError(f"halvings is {halvings}; 2 or more are needed")
        self.in_channels, self.dims, self.multiple = in_channels, dims, 2**halvings
        channels = [width * min(2**scale, 8) for scale in range(halvings)]
        convolution, transposed = CONVOLUTION[dims], _TRANSPOSED[dims]
        inputs = [in_channels, *channels[:-1]]
        self.down = nn.ModuleList(
            convolution(below, above, 4, stride=2, padding=1, bias=False) for below, above in zip(inputs, channels, strict=True)
        )
        self.down_norm = nn.ModuleList(build_norm(norm, count, dims) for count in channels[1:-1])
        outputs = channels[-2::-1]
        inputs = [channels[-1], *(2 * count for count in outputs[:-1])]
        self.up = nn.ModuleList(
            transposed(below, above, 4, stride=2, padding=1, bias=False) for below, above in zip(inputs, outputs, strict=True)
        )
        self.up_norm = nn.ModuleList(build_norm(norm, count, dims) for count in outputs)
        self.dropout = nn.Dropout(dropout)
        self.out = transposed(2 * width, out_channels, 4, stride=2, padding=1)
        normal_start(self)

    def forward(self, images: Tensor) -> Tensor:
        """Translations (B, out_channels, *spatial), in float32 at least, of images (B, in_channels, *spatial) in [-1, 1].

        Raises:
            ModelError: other channels or axes than the network reads.
        """
        self._check(images)
        x, back = in_the_middle(images, [n + -n % self.multiple for n in images.shape[2:]], -1.0)
        x = channels_last(x)
        maps = []
        norms = [nn.Identity(), *self.down_norm, nn.Identity()]
        for down, norm in zip(self.down, norms, strict=True):
            x = functional.leaky_relu(norm(down(x)), 0.2)
            maps.append(x)
        x = maps.pop()
        for number, (up, norm) in enumerate(zip(self.up, self.up_norm, strict=True)):
            x = norm(up(x.relu()))
            if number < 3:
                x = self.dropout(x)
            x = torch.cat([x, maps.pop()], 1)
        return wide(back(self.out(x.relu()))).tanh()

    def _check(self, images: Tensor) -> None:
        channels, *size = images.shape[1:]
        if channels != self.in_channels or len(size) != self.dims:
            raise ModelError(
                f"images of {channels} channels and {len(size)} axes, the translator reads {self.in_channels} and {self.dims}",
                remedy="give images of the modality it translates, alone",
            )
