"""U-HeMIS: segmentation from any subset of the modalities, by mean and variance of what each tells.

Dorent, Joutard, Modat, Ourselin, Vercauteren: "Hetero-Modal Variational Encoder-Decoder for Joint Modality Completion and
Segmentation", MICCAI 2019 (https://arxiv.org/abs/1907.11150), where it is the baseline: HeMIS (Havaei, Guizard, Chapados,
Bengio, MICCAI 2016, https://arxiv.org/abs/1607.05194) with the U-Net of the new method.

Every modality has an encoder of its own. At four scales the maps of those that are there, a set K, are fused into their mean
and variance, and one decoder reads both. In training K is drawn anew for every case: first how many, uniformly, then which.

Terms, with p the softmax of the logits from x_K, and g the reference, one-hot
    network/cross_entropy   L_CE = mean_v -log p_y(v)(v)
    network/dice            L_Dice = 1 - mean_c (2 sum_v p g + s) / (sum_v p^2 + sum_v g^2 + s), s = 1e-5, background included
    network/regularisation  L_reg = mean over the kernels w of 1e-5 * |w|^2 / 2

Adam's learning rate is divided by 4 every 10,000 iterations; the authors made 60,000. The terms and the rate are those of the
published code.

Differs from the authors' code
    1. Dice is of every sample, then averaged over the batch (the same at their batch size of 1).
    2. An absent modality is encoded as zeros and left out of the fusion; theirs encodes another one's image and leaves it out.
    3. Sizes that are not multiples of 8 are read: a deeper map is resized to the skip it meets.
    4. Which weights are kept is the recipe's affair (the best on validation cases); theirs are the last.
    5. Preparation is HAD-Net's, as in its comparison, and so is the augmentation, which that comparison presumably left as
       it was (theirs: histograms standardised and whitened; flips along all axes, scaling by 10 %). Windows are blended, not
       cut at their borders.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.data.batch import Batch
from modistill.hardware import wide
from modistill.losses.segmentation import soft_dice
from modistill.methods.base import AnySubsetMethod, Turn
from modistill.networks.hemis import HeMISUNet
from modistill.schedules import stepped_adam
from modistill.subsets import draw_subset, only_present

__all__ = ["UHeMIS", "kernel_penalty", "segmentation_terms"]


class UHeMIS(AnySubsetMethod):
    """One network for all subsets of the modalities.

    Args:
        modalities: what it can read.
        classes: number of classes C, background included.
        width: feature maps inside the first block (f); even.
        dims: 2 or 3.
        dropout: probability that a training case is seen through a random subset of its modalities, not all (1 in the paper).
        regularisation: factor of the penalty on kernels.
        lr: learning rate of Adam at the start.
        lr_divisor: by which the rate is divided.
        lr_every: iterations between two divisions.
        betas: of Adam.

    Raises:
        ValueError: an odd width, a dropout outside [0, 1], or a schedule without sense.
    """

    deployed = "network"

    def __init__(
        self,
        modalities: tuple[str, ...] = ("flair", "t1ce", "t1", "t2"),
        classes: int = 4,
        *,
        width: int = 8,
        dims: int = 3,
        dropout: float = 1.0,
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
        self.network = HeMISUNet(len(modalities), classes, width, dims)
        self.dropout, self.regularisation = dropout, regularisation
        self.reads = {"network": tuple(modalities)}
        self.players = {"network": partial(stepped_adam, lr=lr, divisor=lr_divisor, every=lr_every, betas=betas)}

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """One turn: the network learns from a random subset of what each case has."""
        shown = draw_subset(batch.presence, self.dropout)
        terms = segmentation_terms(self.segment_subset(batch.all, shown), batch.labels)
        yield "network", {**terms, "regularisation": self.regularisation * kernel_penalty(self.network)}

    def segment_subset(self, images: Tensor, presence: Tensor) -> Tensor:
        """Logits (B, C, *spatial)."""
        logits: Tensor = self.network(only_present(images, presence), presence)
        return logits


def segmentation_terms(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and Dice loss of this module's docstring, computed in float32 at least.

    Args:
        logits: (B, C, *spatial).
        labels: (B, *spatial) int64.
    """
    logits = wide(logits)
    reference = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    return {
        "cross_entropy": functional.cross_entropy(logits, labels),
        "dice": 1 - soft_dice(logits.softmax(1), reference.to(logits.dtype), squared=True).mean(),
    }


def kernel_penalty(network: nn.Module) -> Tensor:
    """Mean over the convolutions of |w|^2 / 2: of kernels, not of their elements."""
    kernels = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
    return torch.stack([kernel.square().sum() for kernel in kernels]).mean() / 2
