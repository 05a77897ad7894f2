"""The generator of CycleGAN: an image of one modality in, an image of the same size as another modality would show it out.

Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks" (ICCV 2017,
https://arxiv.org/abs/1703.10593), after Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution"
(ECCV 2016, https://arxiv.org/abs/1603.08155); CMEDL translates CT to MR and back with two of them (Jiang et al., IEEE TMI 2022,
https://arxiv.org/abs/2107.07985). `k` is the width, 64 by default:

========  ========================================  ===========  ==========  =================
layer     convolution                               channels     resolution  followed by
========  ========================================  ===========  ==========  =================
stem      7x7, edges reflected                      in -> k      1           norm, ReLU
down1     3x3, stride 2                             k -> 2k      1/2         norm, ReLU
down2     3x3, stride 2                             2k -> 4k     1/4         norm, ReLU
blocks    9 times x + [3x3, 3x3](x), reflected      4k -> 4k     1/4         norm, ReLU; norm
up1       3x3 transposed, stride 2                  4k -> 2k     1/2         norm, ReLU
up2       3x3 transposed, stride 2                  2k -> k      1           norm, ReLU
out       7x7, edges reflected                      k -> out     1           tanh
========  ========================================  ===========  ==========  =================

The norm is an instance norm without learned parameters and without running statistics. Every convolution has a bias; in front
of a norm it cancels, and receives a gradient of zero.

Differs from the published code of the paper
    1. It keeps the size only of images whose axes are multiples of 4. Here other images are reflected at the end of an axis up
       to the next multiple, and the translation is cut back.

Differs from the published code of CMEDL's group (PSIGAN)
    1. There the dropout inside the blocks, of 0.5, is on unless it is asked for; here it is off unless it is.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.hardware import wide
from modistill.networks.convolution import CONVOLUTION, channels_last, convolve
from modistill.networks.norm import norm_activation

__all__ = ["ResnetTranslator", "initialise"]

_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class ResnetTranslator(nn.Module):
    """Images of another modality, in [-1, 1], at any size from 5 voxels along every axis.

    Args:
        in_channels: of the images it reads.
        out_channels: of the images it makes.
        width: channels of the stem (`k` of the table).
        blocks: number of residual blocks.
        dropout: probability with which an element between the two convolutions of a block is dropped.
        dims: 2 or 3.

    Weights start from N(0, 0.02), biases from 0.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     translator = ResnetTranslator()
        >>> sum(p.numel() for p in translator.parameters())
        11365633
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        width: int = 64,
        blocks: int = 9,
        dropout: float = 0.0,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.in_channels, self.dims = in_channels, dims
        k, convolution, transposed = width, CONVOLUTION[dims], _TRANSPOSED[dims]
        self.stem = convolution(in_channels, k, 7)
        self.down1, self.down2 = convolution(k, 2 * k, 3), convolution(2 * k, 4 * k, 3)
        self.blocks = nn.ModuleList(_Residual(4 * k, dropout, dims) for _ in range(blocks))
        self.up1, self.up2 = transposed(4 * k, 2 * k, 3), transposed(2 * k, k, 3)
        self.out = convolution(k, out_channels, 7)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Translations (B, out_channels, *spatial), in float32 at least, of images (B, in_channels, *spatial) in [-1, 1].

        Raises:
            ModelError: other channels or axes than the network reads, or an axis below 5 voxels.
        """
        self._check(images)
        x = channels_last(_filled_up(images))
        x = norm_activation(_convolve_reflected(x, self.stem.weight), bias=self.stem.bias, slope=0)
        for down in self.down1, self.down2:
            x = norm_activation(convolve(x, down.weight, stride=2), bias=down.bias, slope=0)
        for block in self.blocks:
            x = block(x)
        for up in self.up1, self.up2:
            x = norm_activation(_double(x, up.weight), bias=up.bias, slope=0)
        x = _convolve_reflected(x, self.out.weight, self.out.bias)
        for axis, n in enumerate(images.shape[2:], start=2):
            x = x.narrow(axis, 0, n)
        return wide(x).tanh()

    def _check(self, images: Tensor) -> None:
        channels, *size = images.shape[1:]
        if channels != self.in_channels or len(size) != self.dims:
            raise ModelError(
                f"images of {channels} channels and {len(size)} axes, the translator reads {self.in_channels} and {self.dims}",
                remedy="give images of the modality it translates, alone",
            )
        if min(size) < 5:
            raise ModelError(
                f"images of {'x'.join(map(str, size))} voxels are too small for the translator: every axis needs 5",
                remedy="choose a larger patch",
            )


class _Residual(nn.Module):
    """x + norm(conv2(dropout(ReLU(norm(conv1(x)))))), of edges that are reflected."""

    def __init__(self, channels: int, dropout: float, dims: int) -> None:
        super().__init__()
        self.conv1 = CONVOLUTION[dims](channels, channels, 3)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CONVOLUTION[dims](channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, *spatial), two voxels or more along every axis, to the same shape."""
        inside = norm_activation(_convolve_reflected(x, self.conv1.weight), bias=self.conv1.bias, slope=0)
        inside = _convolve_reflected(self.dropout(inside), self.conv2.weight)
        return x + norm_activation(inside, bias=self.conv2.bias, slope=1)  # a slope of 1 is no activation


def initialise(network: nn.Module) -> None:
    """Weights of all convolutions from N(0, 0.02), as CycleGAN starts its generators and critics, and biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _filled_up(images: Tensor) -> Tensor:
    """The images, reflected at the end of every axis that is no multiple of 4."""
    return functional.pad(images, [end for n in reversed(images.shape[2:]) for end in (0, -n % 4)], mode="reflect")


def _convolve_reflected(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution (B, I, *spatial) * (O, I, *taps) to the same spatial shape; outside lies the mirror image."""
    convolution = functional.conv3d if x.ndim == 5 else functional.conv2d
    x = functional.pad(x, [weight.shape[-1] // 2] * (2 * (x.ndim - 2)), mode="reflect")
    return convolution(x, weight, bias)


def _double(x: Tensor, weight: Tensor) -> Tensor:
    """Transposed convolution of stride 2, (B, I, *spatial) * (I, O, 3, 3) -> (B, O, *2 spatial)."""
    transposed = functional.conv_transpose3d if x.ndim == 5 else functional.conv_transpose2d
    return transposed(x, weight, None, 2, 1, 1)
