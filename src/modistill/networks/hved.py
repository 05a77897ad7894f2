"""U-HVED: the encoders of U-HeMIS tell a Gaussian for every voxel; their product is the code that all decoders read.

Dorent, Joutard, Modat, Ourselin, Vercauteren, "Hetero-Modal Variational Encoder-Decoder for Joint Modality Completion and
Segmentation", MICCAI 2019 (https://arxiv.org/abs/1907.11150), with the layers of its published code. The skeleton is that of
`networks.hemis`, `f` the width, 8 by default; blocks of the encoder keep their channels (f, 2f, 4f, 8f at the four scales). One
half of a block's maps is the mean, the other the log-variance of a Gaussian with f/2, f, 2f, 4f channels:

=======  ======================================  ==========  =======================================
block    channels                                resolution  input
=======  ======================================  ==========  =======================================
up 3     4f + 2f -> 4f -> 2f                     1/4         code 4 resized, code 3
up 2     2f + f -> 2f -> f                       1/2         up 3 resized, code 2
up 1     f + f/2 -> f -> f/2                     1           up 2 resized, code 1
out      f/2 -> classes, or 1 for an image       1           up 1; a 1x1x1 convolution
=======  ======================================  ==========  =======================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from modistill.hardware import wide
from modistill.losses.gaussian import Gaussian, product_of_experts
from modistill.networks.hemis import Decoder, Encoder, check_subset, initialise

__all__ = ["Experts", "HVEDUNet", "VariationalUNet", "codes"]

Experts: TypeAlias = Sequence[Sequence[Gaussian]]


class HVEDUNet(nn.Module):
    """Logits of every class for every voxel, from any non-empty subset of the modalities.

    Args:
        modalities: number of modalities M, each with an encoder of its own.
        classes: number of classes C, the background included.
        width: channels of the first scale; even.
        dims: 2 or 3.

    Raises:
        ValueError: the width is odd or below 2.

    Example:
        >>> sum(p.numel() for p in HVEDUNet(modalities=4, classes=4).parameters())
        959112
    """

    def __init__(self, modalities: int, classes: int, width: int = 8, dims: int = 3) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(Encoder(width, width, dims) for _ in range(modalities))
        self.decoder = Decoder(width // 2, width, classes, dims)
        self.dims = dims
        initialise(self)

    def forward(self, images: Tensor, presence: Tensor, noise: Tensor | None = None) -> Tensor:
        """Logits (B, C, *spatial).

        Args:
            images: (B, M, *spatial); what stands in an absent channel must be finite, and changes no bit.
            presence: (B, M) bool, at least one true in every row.
            noise: (B,) see `codes`.

        Raises:
            ModelError: see `networks.hemis.check_subset`.
        """
        check_subset(images, presence, len(self.encoders), self.dims)
        logits: Tensor = self.decoder(codes(self.experts(images), presence, noise))
        return logits

    def experts(self, images: Tensor) -> Experts:
        """At each of the four scales, the M Gaussians (B, width / 2 * 2^s, *spatial / 2^s) that the encoders give."""
        maps = [encoder(image) for encoder, image in zip(self.encoders, torch.split(images, 1, dim=1), strict=True)]
        return [[_expert(x) for x in scale] for scale in zip(*maps, strict=True)]


class VariationalUNet(nn.Module):
    """What U-HVED trains: the network that segments, and beside it a decoder for the image of every modality.

    Args:
        modalities: number of modalities M.
        classes: number of classes C, the background included.
        width: channels of the first scale; even.
        dims: 2 or 3.

    Example:
        >>> sum(p.numel() for p in VariationalUNet(modalities=4, classes=4).parameters())
        1250552
    """

    def __init__(self, modalities: int, classes: int, width: int = 8, dims: int = 3) -> None:
        super().__init__()
        self.network = HVEDUNet(modalities, classes, width, dims)
        self.images = nn.ModuleList(Decoder(width // 2, width, 1, dims) for _ in range(modalities))
        initialise(self.images)

    def forward(self, images: Tensor, chosen: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Experts]:
        """Logits (B, C, *spatial) and images (B, M, *spatial) from the chosen modalities; and all experts.

        Args:
            images: (B, M, *spatial), finite; those that are not chosen are encoded too, and reach the experts alone.
            chosen: (B, M) bool, at least one true in every row.
            noise: (B,) see `codes`.

        Raises:
            ModelError: see `networks.hemis.check_subset`.
        """
        check_subset(images, chosen, len(self.images), self.network.dims)
        experts = self.network.experts(images)
        pyramid = codes(experts, chosen, noise)
        return self.network.decoder(pyramid), torch.cat([decoder(pyramid) for decoder in self.images], 1), experts


def codes(experts: Experts, presence: Tensor, noise: Tensor | None) -> list[Tensor]:
    """At each scale, what the decoders read: a draw from the product of the experts that are there, or its mean.

    Args:
        experts: of every scale.
        presence: (B, M) bool.
        noise: (B,) 1 for a draw, 0 for the mean; None for the mean of all.
    """
    products = [product_of_experts(scale, presence) for scale in experts]
    return [product.mean if noise is None else product.sample(noise) for product in products]


def _expert(x: Tensor) -> Gaussian:
    """The two halves of the channels as mean and log-variance."""
    mean, logvar = wide(x).chunk(2, dim=1)
    return Gaussian(mean, logvar.clamp(-50, 50))
