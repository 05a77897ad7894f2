"""pix2pix: a translation learnt from pairs, the upper bound of those that see each patient in one modality.

Isola, Zhu, Zhou, Efros, "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017
(https://arxiv.org/abs/1611.07004). A generator G makes an image of the target from one of the source, and the real target of
the same patient says what it should have been. A critic D sees source and target together and tells, patch by patch, pairs that
were acquired from pairs of which G made one.

Terms, with x and y source and target of the same patients in [-1, 1], and D in (0, 1)
    critic/real            = mean -log D(x, y) / 2                          Eq. (1), for D halved as in Section 3.3
    critic/fake            = mean -log (1 - D(x, G(x))) / 2
    generator/adversarial  = mean -log D(x, G(x))                           Eq. (1), for G as in Section 3.3
    generator/l1           = l1_weight mean |y - G(x)|                      Eq. (3) and (4), lambda = 100

The critic learns first in every round. Adam's rate is constant for half of the epochs and falls to 0 along a line in the other
half.

Differs from the paper
    1. A translation is one image, the same each time: dropout, its only noise, is off, and batch norms use the statistics of
       the training. The paper drops, and takes the statistics of the images at hand; `norm="instance"` takes those of each.
    2. The critic has instance norms without learned scales (`networks.patch_critic`), where the paper's has batch norms. In a
       batch of one they are equal but for the scales.
    3. The paper names a rate, no schedule; this is that of the authors' PyTorch code (100 epochs, and 100 falling).
    4. Images have one channel. Mirrors, crops and the size of the batch are the recipe's (8; the paper's is 1 to 10).
    5. Of the generator: see `networks.pix2pix_unet`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

from modistill.data.batch import Batch
from modistill.hardware import wide
from modistill.losses.adversarial import log_likelihood
from modistill.methods.base import TranslationMethod, Turn, signed
from modistill.networks.blocks import NormKind
from modistill.networks.patch_critic import PatchCritic
from modistill.networks.pix2pix_unet import Pix2PixUNet
from modistill.schedules import LinearDecayAdam

__all__ = ["Pix2Pix"]


class Pix2Pix(TranslationMethod):
    """A generator, and a critic of pairs.

    Args:
        source: modality that is translated, which the patients have.
        target: modality it is translated into, of which the training cases have a real image.
        width: channels of the generator's and the critic's first layer.
        halvings: scales of the generator below the image: 8 for 256 pixels, 7 for 128, 6 for 64.
        norm: of the generator; "batch", "instance" or "group".
        dropout: in the first three layers of its decoder.
        dims: 2 or 3.
        l1_weight: lambda, of the distance from the real target.
        epochs: over which the learning rate falls to zero; a recipe that leaves it out gets `training.epochs`.
        lr: learning rate of Adam in the first half of them.
        betas: of Adam.

    Raises:
        ValueError: source and target are one, no such norm, fewer than two halvings or one epoch.
    """

    deployed = "generator"
    halvings = 0  # the generator pads what it cannot halve by itself

    def __init__(
        self,
        source: str = "t1",
        target: str = "t1ce",
        *,
        width: int = 64,
        halvings: int = 8,
        norm: NormKind = "batch",
        dropout: float = 0.5,
        dims: int = 2,
        l1_weight: float = 100.0,
        epochs: int = 200,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__()
        if source == target:
            raise ValueError(f"source and target are both {source}; a translation needs two modalities")
        self.dims, self.source, self.target, self.targets = dims, source, target, (target,)
        self.generator = Pix2PixUNet(width=width, halvings=halvings, norm=norm, dropout=dropout, dims=dims)
        self.critic = PatchCritic(2, width=width, dims=dims)
        self.l1_weight = l1_weight
        self.reads = {"generator": (source,), "critic": (source, target)}
        self.adam = LinearDecayAdam(epochs, lr=lr, betas=betas)
        self.players = {"generator": self.adam, "critic": self.adam}

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """The turns of critic and generator.

        Raises:
            TrainingStopped: the epoch is one after the last, whose learning rate would be zero.
        """
        self.adam.begin(batch.epoch)
        x, y = (signed(batch.select((name,))) for name in (self.source, self.target))
        made = self.generator(x)

        real, fake = self._judged(x, y), self._judged(x, made.detach())
        yield "critic", {"real": log_likelihood.real(real) / 2, "fake": log_likelihood.fake(fake) / 2}

        yield (
            "generator",
            {
                "adversarial": log_likelihood.real(self._judged(x, made)),
                "l1": self.l1_weight * l1_loss(made, wide(y)),
            },
        )

    def translate(self, images: Tensor, target: str) -> Tensor:
        """See `TranslationMethod`: there is one target."""
        made: Tensor = self.generator(signed(images))
        return (made + 1) / 2

    def _judged(self, source: Tensor, target: Tensor) -> Tensor:
        """Patch logits of pairs (B, 1, *spatial)."""
        logits: Tensor = self.critic(torch.cat([source, target], dim=1))
        return logits
