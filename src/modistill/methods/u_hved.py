"""U-HVED: segmentation from any subset of the modalities, by a code from which the images can be told as well.

Dorent, Joutard, Modat, Ourselin, Vercauteren: "Hetero-Modal Variational Encoder-Decoder for Joint Modality Completion and
Segmentation", MICCAI 2019 (https://arxiv.org/abs/1907.11150).

Every modality has an encoder of its own, which gives a Gaussian for every voxel at four scales. The product of those that are
there, a set K, and of N(0, 1) is the distribution q_K of the code z: the more modalities, the surer. From a draw of z one
decoder makes the segmentation, and others the images of all modalities. In training K is drawn anew for every case: first how
many, uniformly, then which.

Terms, with p the softmax of the logits from z ~ q_K, g the reference, one-hot, and x~ the decoded images
    vae/cross_entropy   L_CE = mean_v -log p_y(v)(v)
    vae/dice            L_Dice = 1 - mean_c (2 sum_v p g + s) / (sum_v p^2 + sum_v g^2 + s), s = 1e-5, background included
    vae/reconstruction  L_MSE = 0.1 * mean_v,m (x~_m - x_m)^2
    vae/divergence      L_KL = 0.1 * mean_scales (1/14 sum_{S != K} KL(q_K || q_S) + 1/15 sum_S KL(q_S || N(0, 1)))
    vae/regularisation  L_reg = mean over the kernels w of 1e-5 * |w|^2 / 2

Reconstruction asks for every image that a case has, those outside K included. S runs over the 15 non-empty subsets of four
modalities; for a case that has n of M, over the 2^n - 1 subsets of these, with their numbers in place of 14 and 15. After the
training the image decoders are left behind.

Adam's learning rate is divided by 4 every 10,000 iterations; the authors made 60,000. The terms are those of the published
code.

Differs from the authors' code
    1. Their line for the learning rate divides it every 10 iterations: after 100 it is 1e-9, all steps together are worth 13 at
       the full rate, and nothing is learnt. For U-HeMIS the same line has 10,000, in the same paper and with the same number of
       iterations; that is what `lr_every` is here.
    2. The code of a segmentation is the mean of q_K; theirs is a draw, `deterministic=False`, so no two answers are alike.
    3. Dice is of every sample, then averaged over the batch (the same at their batch size of 1).
    4. An absent modality is encoded as zeros and left out of the product; theirs encodes another one's image and leaves it out.
    5. Sizes that are not multiples of 8 are read: a deeper map is resized to the skip it meets.
    6. Which weights are kept is the recipe's affair (the best on validation cases); theirs are the last.
    7. Preparation is HAD-Net's, as in its comparison, and so is the augmentation, which that comparison presumably left as
       it was (theirs: histograms standardised and whitened; flips along all axes, scaling by 10 %). Windows are blended, not
       cut at their borders.
    8. On images in [0, 1] the squared error is some 30 to 90 times smaller than on whitened ones; its weight of 0.1 stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from modistill.data.batch import Batch
from modistill.hardware import wide
from modistill.losses.gaussian import subset_divergence
from modistill.methods.base import AnySubsetMethod, Turn
from modistill.methods.u_hemis import kernel_penalty, segmentation_terms
from modistill.networks.hved import VariationalUNet
from modistill.schedules import stepped_adam
from modistill.subsets import draw_subset, only_present

__all__ = ["UHVED"]


class UHVED(AnySubsetMethod):
    """One network for all subsets of the modalities, trained together with decoders of their images.

    Args:
        modalities: what it can read.
        classes: number of classes C, background included.
        width: feature maps inside the first block; even.
        dims: 2 or 3.
        dropout: probability that a training case is seen as in the paper (1 there): through a random subset of its modalities
            and a draw of the code. The others are seen through all they have and the mean; 0 leaves nothing to chance.
        deterministic: segment from the mean of the code; False draws it, from PyTorch's generator.
        reconstruction_weight: of the image decoders' squared error.
        divergence_weight: of the divergences between the codes of different subsets, and from N(0, 1).
        regularisation: factor of the penalty on kernels.
        lr: learning rate of Adam at the start.
        lr_divisor: by which the rate is divided.
        lr_every: iterations between two divisions.
        betas: of Adam.

    Raises:
        ValueError: an odd width, a dropout outside [0, 1], or a schedule without sense.
    """

    deployed = "vae.network"

    def __init__(
        self,
        modalities: tuple[str, ...] = ("flair", "t1ce", "t1", "t2"),
        classes: int = 4,
        *,
        width: int = 8,
        dims: int = 3,
        dropout: float = 1.0,
        deterministic: bool = True,
        reconstruction_weight: float = 0.1,
        divergence_weight: float = 0.1,
        regularisation: float = 1e-5,
        lr: float = 1e-3,
        lr_divisor: float = 4.0,
        lr_every: int = 10_000,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__()
        self.dims = dims
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}, a probability lies between 0 and 1")
        self.vae = VariationalUNet(len(modalities), classes, width, dims)
        self.dropout, self.deterministic = dropout, deterministic
        self.reconstruction_weight, self.divergence_weight = reconstruction_weight, divergence_weight
        self.regularisation = regularisation
        self.reads = {"vae.network": tuple(modalities)}
        self.players = {"vae": partial(stepped_adam, lr=lr, divisor=lr_divisor, every=lr_every, betas=betas)}

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """One turn: encoders and decoders learn together."""
        presence, images = batch.presence, only_present(batch.all, batch.presence)
        drawn = torch.rand(len(presence)).to(presence.device) < self.dropout
        chosen = torch.where(drawn[:, None], draw_subset(presence), presence)
        logits, decoded, experts = self.vae(images, chosen, noise=drawn.to(images.dtype))
        divergences = [subset_divergence(scale, presence, chosen) for scale in experts]
        yield (
            "vae",
            {
                **segmentation_terms(logits, batch.labels),
                "reconstruction": self.reconstruction_weight * _squared_error(decoded, images, presence),
                "divergence": self.divergence_weight * torch.stack(divergences).mean(),
                "regularisation": self.regularisation * kernel_penalty(self.vae),
            },
        )

    def segment_subset(self, images: Tensor, presence: Tensor) -> Tensor:
        """Logits (B, C, *spatial)."""
        noise = None if self.deterministic else torch.ones(len(images), device=images.device)
        logits: Tensor = self.vae.network(only_present(images, presence), presence, noise)
        return logits


def _squared_error(decoded: Tensor, images: Tensor, presence: Tensor) -> Tensor:
    """Mean over the voxels and the modalities (B, M, *spatial) that a case has, then over cases."""
    errors = (wide(decoded) - wide(images)).square().flatten(2).mean(2)
    return (torch.where(presence, errors, 0).sum(1) / presence.sum(1)).mean()
