"""The critics of DRIT, the tables of which are those of `networks.drit`."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from modistill.networks.convolution import CONVOLUTION, channels_last
from modistill.networks.drit_layers import MEANS, DRITConvolution, initialise, require_images

__all__ = ["ContentCritic", "MultiScaleCritic"]


class MultiScaleCritic(nn.Module):
    """Whether the patches of an image look real, at several scales: logits that are large where they do.

    Args:
        in_channels: of the images.
        width: channels of the first layer.
        scales: of the image, each half the one before; every scale has layers of its own.
        norm: instance norm in front of each LeakyReLU.
        slope: of LeakyReLU for negative values.
        dims: 2 or 3.
    """

    def __init__(
        self, in_channels: int = 1, width: int = 64, scales: int = 3, norm: bool = False, slope: float = 0.01, dims: int = 2
    ) -> None:
        super().__init__()
        self.in_channels, self.dims = in_channels, dims
        self.smallest = (31 if norm else 15) * 2 ** (scales - 1) + 1  # a border needs two voxels to reflect, a norm to compare
        halving = partial(DRITConvolution, taps=4, dims=dims, stride=2, norm=norm, slope=slope)
        inner = [(width * 2**n, width * 2 ** (n + 1)) for n in range(3)]
        self.scales = nn.ModuleList(
            nn.Sequential(*(halving(*pair) for pair in [(in_channels, width), *inner]), CONVOLUTION[dims](8 * width, 1, 1))
            for _ in range(scales)
        )
        initialise(self)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of every scale, the finest first: (B, 1, *spatial / 16), (B, 1, *spatial / 32), ...

        Args:
            images: (B, in_channels, *spatial). The next scale has means of 3x3 voxels, less where these lie outside.

        Raises:
            ModelError: other channels or axes, or an axis below `smallest`, for three scales 61 voxels.
        """
        require_images(images, self.in_channels, self.dims, self.smallest, "critic")
        x, logits = channels_last(images), []
        for critic in self.scales:
            logits.append(critic(x))
            x = MEANS[self.dims](x, 3, stride=2, padding=1, count_include_pad=False)
        return tuple(logits)


class ContentCritic(nn.Module):
    """Of which of two domains a content is: logits that are large for the second.

    Args:
        channels: of the content, four times the width of its encoder.
        layers: of stride 2. With 3 the image needs 209 voxels an axis, with 2 it needs 97, with 1 41, with none 13.
        norm: instance norm in front of their LeakyReLU.
        slope: of LeakyReLU for negative values.
        dims: 2 or 3.
    """

    def __init__(self, channels: int = 256, layers: int = 3, norm: bool = False, slope: float = 0.01, dims: int = 2) -> None:
        super().__init__()
        self.channels, self.dims = channels, dims
        self.smallest = 7 * 2**layers - 3  # 4 for the last taps; n voxels are left of 2n + 3
        same = partial(DRITConvolution, channels, channels, dims=dims, slope=slope)
        halving = [same(taps=7, stride=2, norm=norm) for _ in range(layers)]
        self.layers = nn.Sequential(*halving, same(taps=4, border=0), CONVOLUTION[dims](channels, 1, 1))
        initialise(self)

    def forward(self, content: Tensor) -> Tensor:
        """Logits (B, 1, *patches), for images of 256x256 voxels 2x2 of them, for 216x216 a single one.

        Args:
            content: (B, channels, *spatial).

        Raises:
            ModelError: other channels or axes, or an axis below `smallest`, for three layers 53 voxels of the content.
        """
        require_images(content, self.channels, self.dims, self.smallest, "content critic")
        logits: Tensor = self.layers(channels_last(content))
        return logits
