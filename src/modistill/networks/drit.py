"""The networks of DRIT, which translates between unpaired domains by taking an image apart into content and style.

Lee, Tseng, Huang, Singh, Yang: "Diverse Image-to-Image Translation via Disentangled Representations", ECCV 2018
(https://arxiv.org/abs/1808.00948), and DRIT++, IJCV 2020 (https://arxiv.org/abs/1905.01270), with the layers of the published
code. The VAE variant of CMEDL (Jiang et al., IEEE TMI 2022, https://arxiv.org/abs/2107.07985) makes MR of CT with them. `w` is
the width, 64 by default, `s` the length of the style code, 8. What is private is there once for every domain:

==================  =======  =====================================================  ==========  ==================
network             part     layers                                                 resolution  channels
==================  =======  =====================================================  ==========  ==================
`ContentEncoder`    private  7x7, LeakyReLU                                         1           in -> w
                    private  twice: 3x3 of stride 2, norm, ReLU                     1/2, 1/4    w -> 2w -> 4w
                    private  three residual blocks                                  1/4         4w
                    shared   residual block                                         1/4         4w
`StyleEncoder`      private  4x4 of stride 2                                        1/2         in -> w
                    private  three pooling blocks, LeakyReLU                        to 1/16     w -> 2w -> 3w -> 4w
                    private  mean over the voxels; two linear layers                            4w -> s
`StyleGenerator`    shared   residual block                                         1/4         4w
                    private  three residual blocks                                  1/4         4w + s
                    private  twice: transposed 3x3 of stride 2, layer norm, ReLU    1/2, 1      -> 2w + s -> w + s
                    private  1x1, tanh                                              1           -> out
`MultiScaleCritic`           four times: 4x4 of stride 2, LeakyReLU; then 1x1       to 1/16     w, 2w, 4w, 8w; 1
`ContentCritic`              three times: 7x7 of stride 2, LeakyReLU                            4w
                             4x4, LeakyReLU; 1x1                                                4w -> 1
==================  =======  =====================================================  ==========  ==================

The style is laid beside the maps, the same for every voxel, in front of each private layer of the generator. A residual block
adds 3x3, norm, ReLU, 3x3, norm of its input to it. A pooling block is the mean over 2x2 of LeakyReLU, 3x3, LeakyReLU, 3x3, plus
a 1x1 convolution of the mean over 2x2 of its input. Norms are instance norms without parameters, but for the layer norms. All
borders are reflected, save in transposed convolutions; the 7x7 of `ContentCritic` have a border of one, its 4x4 none. All
convolutions have a bias, and their taps start as N(0, 0.02). With `dims=3`, which no source has, squares become cubes.

The critics are in `networks.drit_critics`. The parameters are as many as published: for two domains 9,005,568, 2,684,064 and
9,564,386; 8,265,027 and 10,683,649.

Differs from the published code
    1. The instance norms of its critics are never made, for the wrong strings are compared. Without them is what ran, and the
       default; `norm=True` makes them.
    2. Its content encoder adds N(0, 1) to what it finds, in training; here the method does (`methods.drit`).
    3. Sizes that are not multiples of 4 are read: there is content for every 4 voxels begun, and images are cut to their size.
    4. Critics end in logits, without a sigmoid. Its option of a spectral norm is left out, and so is that of a style which
       modulates the generator's blocks.
Differs from the text of CMEDL
    5. It names six residual blocks; the published code has four, the shared one among them: `blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.hardware import wide
from modistill.losses.gaussian import Gaussian
from modistill.networks.convolution import CONVOLUTION, channels_last
from modistill.networks.drit_layers import IDENTITY, MEANS, RELU, DRITConvolution, by, initialise, require_images

__all__ = ["ContentEncoder", "StyleEncoder", "StyleGenerator", "StyleTranslator"]

_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class ContentEncoder(nn.Module):
    """What an image shows, said in the same way for every domain.

    Args:
        domains: their names, such as modalities.
        in_channels: of the images.
        width: channels of the first layer.
        blocks: residual blocks, the last of which is shared; at least 1.
        slope: of LeakyReLU for negative values.
        dims: 2 or 3.

    Raises:
        ValueError: no block.
    """

    def __init__(
        self, domains: Sequence[str], in_channels: int = 1, width: int = 64, blocks: int = 4, slope: float = 0.01, dims: int = 2
    ) -> None:
        super().__init__()
        self.in_channels, self.dims, w = in_channels, dims, width
        halving = partial(DRITConvolution, taps=3, dims=dims, stride=2, norm=True, slope=RELU)

        def private() -> nn.Module:
            first = DRITConvolution(in_channels, w, 7, dims, border=3, slope=slope)
            return nn.Sequential(first, halving(w, 2 * w), halving(2 * w, 4 * w), *_residuals(blocks - 1, 4 * w, dims))

        self.private = nn.ModuleDict({domain: private() for domain in domains})
        self.shared = _Residual(4 * w, dims)
        initialise(self)

    def forward(self, images: Tensor, domain: str) -> Tensor:
        """Content (B, 4 * width, *spatial / 4, rounded up).

        Args:
            images: (B, in_channels, *spatial).
            domain: that they are of.

        Raises:
            ModelError: no such domain, other channels or axes, or an axis below 5 voxels.
        """
        require_images(images, self.in_channels, self.dims, 5, "content encoder")
        content: Tensor = self.shared(_of(domain, self.private)(channels_last(images)))
        return content


class StyleEncoder(nn.Module):
    """What an image looks like within its domain: a Gaussian over a short code.

    Args:
        domains: their names.
        in_channels: of the images.
        width: channels of the first layer.
        code: length of the code.
        slope: of LeakyReLU for negative values.
        dims: 2 or 3.
    """

    def __init__(
        self, domains: Sequence[str], in_channels: int = 1, width: int = 64, code: int = 8, slope: float = 0.2, dims: int = 2
    ) -> None:
        super().__init__()
        self.in_channels, self.dims, self.slope = in_channels, dims, slope

        def private() -> nn.Module:
            first = DRITConvolution(in_channels, width, 4, dims, stride=2, slope=IDENTITY)
            return nn.Sequential(first, *(_Pooling(n * width, (n + 1) * width, slope, dims) for n in (1, 2, 3)))

        self.private = nn.ModuleDict({domain: private() for domain in domains})
        self.mean = nn.ModuleDict({domain: nn.Linear(4 * width, code) for domain in domains})
        self.logvar = nn.ModuleDict({domain: nn.Linear(4 * width, code) for domain in domains})
        initialise(self)

    def forward(self, images: Tensor, domain: str) -> Gaussian:
        """Mean and log-variance (B, code) of the style; `.sample(torch.ones(B))` draws one for every image.

        Args:
            images: (B, in_channels, *spatial).
            domain: that they are of.

        Raises:
            ModelError: no such domain, other channels or axes, or an axis below 16 voxels.
        """
        require_images(images, self.in_channels, self.dims, 16, "style encoder")
        x = _of(domain, self.private)(channels_last(images))
        x = wide(functional.leaky_relu(x, self.slope)).flatten(2).mean(2)
        return Gaussian(wide(self.mean[domain](x)), wide(self.logvar[domain](x)))


class StyleGenerator(nn.Module):
    """An image of a domain, from a content, whatever its domain, and a style of this one.

    Args:
        domains: their names.
        out_channels: of the images.
        width: that of the content encoder.
        blocks: residual blocks, the first of which is shared; at least 1.
        code: length of the style code.
        dims: 2 or 3.

    Raises:
        ValueError: no block.

    Example:
        >>> domains, ct, mr = ("ct", "mr"), torch.zeros(2, 1, 64, 50), torch.zeros(2, 1, 30, 30)
        >>> content, style = ContentEncoder(domains, width=2), StyleEncoder(domains, width=2)
        >>> generator = StyleGenerator(domains, width=2)
        >>> generator(content(ct, "ct"), style(mr, "mr").mean, "mr", size=ct.shape[2:]).shape
        torch.Size([2, 1, 64, 50])
    """

    def __init__(
        self, domains: Sequence[str], out_channels: int = 1, width: int = 64, blocks: int = 4, code: int = 8, dims: int = 2
    ) -> None:
        super().__init__()
        self.channels, self.code, self.dims, w, s = 4 * width, code, dims, width, code

        def private() -> nn.Module:
            inner = nn.Sequential(*_residuals(blocks - 1, 4 * w + s, dims))
            doubling = [_doubling(4 * w + 2 * s, 2 * w + s, dims), _doubling(2 * w + 2 * s, w + s, dims)]
            return nn.ModuleList([inner, *doubling, CONVOLUTION[dims](w + 2 * s, out_channels, 1)])

        self.shared = _Residual(4 * w, dims)
        self.private = nn.ModuleDict({domain: private() for domain in domains})
        initialise(self)

    def forward(self, content: Tensor, style: Tensor, domain: str, size: Sequence[int] | None = None) -> Tensor:
        """Images (B, out_channels, *size) in [-1, 1], float32 at least.

        Args:
            content: (B, 4 * width, *spatial).
            style: (B, code), or (1, code) for all.
            domain: of the images to make, and of the style.
            size: of the image that the content is of; four times the content's where it is not given.

        Raises:
            ModelError: no such domain, a style or a content of another shape, or a content that is not of this size.
        """
        require_images(content, self.channels, self.dims, 2, "generator")
        if style.ndim != 2 or style.shape[1] != self.code or len(style) not in {1, len(content)}:
            raise ModelError(
                f"styles of {tuple(style.shape)} for {len(content)} contents, the generator reads codes of {self.code}",
                remedy="give a code for every content, or one for all",
            )
        size = [4 * n for n in content.shape[2:]] if size is None else size
        if [-(-n // 4) for n in size] != list(content.shape[2:]):
            raise ModelError(
                f"content of {by(content.shape[2:])} voxels is not that of an image of {by(size)}",
                remedy="give the size of the image that was encoded",
            )
        layers, x = _of(domain, self.private).children(), self.shared(channels_last(content))
        code = style.to(x.dtype).reshape(*style.shape, *(1,) * self.dims)
        for layer in layers:
            x = layer(torch.cat([x, code.expand(len(x), -1, *x.shape[2:])], 1))
        for axis, n in enumerate(size, start=2):
            x = x.narrow(axis, 0, n)
        return wide(x).tanh()


class StyleTranslator(nn.Module):
    """Content encoder and generator: what makes an image of one domain from one of another.

    Args:
        source: domain that is translated by itself.
        target: domain it is translated into.
        width: channels of the first layer.
        blocks: residual blocks of encoder and of generator.
        code: length of the style code.
        dims: 2 or 3.

    Attributes:
        mean_style: (1, code), that of the target's images; a buffer, which whoever trains it keeps.
    """

    mean_style: Tensor

    def __init__(self, source: str, target: str, *, width: int = 64, blocks: int = 4, code: int = 8, dims: int = 2) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.register_buffer("mean_style", torch.zeros(1, code))
        self.content = ContentEncoder((source, target), width=width, blocks=blocks, dims=dims)
        self.generator = StyleGenerator((source, target), width=width, blocks=blocks, code=code, dims=dims)

    def forward(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Images (B, 1, *spatial) of the source as such of the target, in a style (B, code), else in `mean_style`."""
        style = self.mean_style if style is None else style
        made: Tensor = self.generator(self.content(images, self.source), style, self.target, images.shape[2:])
        return made


class _Residual(nn.Module):
    """The residual block of the module's docstring."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        same = partial(DRITConvolution, channels, channels, 3, dims, norm=True)
        self.inside = nn.Sequential(same(slope=RELU), same(slope=IDENTITY))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.inside(x)
        return total


class _Pooling(nn.Module):
    """The pooling block of the module's docstring."""

    def __init__(self, n_in: int, n_out: int, slope: float, dims: int) -> None:
        super().__init__()
        self.slope, self.halved = slope, partial(MEANS[dims], kernel_size=2)
        self.conv1 = DRITConvolution(n_in, n_in, 3, dims, slope=slope)
        self.conv2 = DRITConvolution(n_in, n_out, 3, dims, slope=IDENTITY)
        self.shortcut = CONVOLUTION[dims](n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.conv2(self.conv1(functional.leaky_relu(x, self.slope)))
        total: Tensor = self.halved(inside) + self.shortcut(self.halved(x))
        return total


def _residuals(count: int, channels: int, dims: int) -> list[_Residual]:
    if count < 0:
        raise ValueError("blocks is below 1, at least one is needed: that which is shared")
    return [_Residual(channels, dims) for _ in range(count)]


def _doubling(n_in: int, n_out: int, dims: int) -> nn.Module:
    conv = _TRANSPOSED[dims](n_in, n_out, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(conv, nn.GroupNorm(1, n_out), nn.ReLU())  # layer norm: over channels and voxels, affine per channel


def _of(domain: str, private: nn.ModuleDict) -> nn.Module:
    if domain not in private:
        raise ModelError(f"no domain {domain!r}", remedy=f"this network was built for {', '.join(private)}")
    return private[domain]
