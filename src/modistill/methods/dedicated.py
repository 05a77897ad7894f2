"""Dedicated: nnU-Net's network and training with the available modalities alone, the baseline that distillation has to beat.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 2021
(https://doi.org/10.1038/s41592-020-01008-z); one network for each subset of modalities as in Ruffle et al., "Brain tumour
segmentation with incomplete imaging data", Brain Communications 2023 (https://doi.org/10.1093/braincomms/fcad118). There
{flair, t1, t2} reaches a Dice of about 0.79 for the enhancing tumour of BraTS 2021 (read off Fig. 1): more than methods for
missing modalities report of nearly the same patients, though not under one protocol.

The network gives logits z_s at every scale s of its decoder (0 is the full resolution), and each scale but the coarsest learns
from the labels y_s, taken from the nearest voxel, with w_s proportional to 2^-s and sum_s w_s = 1.

Turns and terms, with p_s = softmax(z_s), C classes, class 0 the background
    network/dice            sum_s w_s (1 - mean_{c>0} (2 sum_v p_sc y_sc + eps) / (sum_v p_sc + sum_v y_sc + eps)), eps = 1e-5
    network/cross_entropy   sum_s w_s CE(z_s, y_s) = sum_s w_s mean_v -log p_s,y(v)(v)

Dice is taken of each sample, then averaged. SGD with Nesterov momentum, rate lr (1 - e / E)^0.9 in epoch e of E. The norm of
the gradients is bounded by 12: `training.clip_norm: 12` in a recipe.

Differs from nnU-Net
    1. Nothing configures itself: width, stages and E are arguments, patch and sampling stand in the recipe. Defaults are what
       nnU-Net plans for BraTS (patch 128x128x128, batch 2, 1000 epochs of 250 steps).
    2. The loss is greater by 1: nnU-Net subtracts the Dice and leaves out the constant.
    3. Labels are exclusive classes. For BraTS nnU-Net can also learn the overlapping regions, with sigmoid outputs.
    4. Preparation, augmentation, mirroring and the share of patches with foreground are the recipe's, which can name nnU-Net's
       (`augmentation: nnunet`, `foreground: share`, `steps_per_epoch: 250`); the weights that are kept are the best on
       validation cases, not the last.
Differs from Ruffle et al.
    5. They used nnU-Net's first version, whose heads and transposed convolutions have no biases.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from modistill.data.batch import Batch
from modistill.losses.deep_supervision import deep_cross_entropy, deep_dice
from modistill.methods.base import Method, Turn
from modistill.networks.nnunet import NNUNet
from modistill.schedules import PolynomialSGD

__all__ = ["Dedicated"]


class Dedicated(Method):
    """One network for one set of modalities.

    Args:
        modalities: what it reads, in training and at test time.
        classes: number of classes C, background included.
        width: channels of the first stage.
        dims: 2 or 3.
        stages: number of scales of the network.
        epochs: E, over which the learning rate falls to zero; a recipe that leaves it out gets `training.epochs`.
        lr: learning rate of SGD in the first epoch. It follows the epochs, `training.plateau` does not change it.
        momentum: of SGD, Nesterov's.
        weight_decay: of SGD, on every parameter.

    Raises:
        ValueError: fewer than one epoch or two stages, or a momentum outside (0, 1).
    """

    deployed = "network"

    def __init__(
        self,
        modalities: tuple[str, ...] = ("flair", "t1", "t2"),
        classes: int = 4,
        *,
        width: int = 32,
        dims: int = 3,
        stages: int = 6,
        epochs: int = 1000,
        lr: float = 1e-2,
        momentum: float = 0.99,
        weight_decay: float = 3e-5,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.sgd = PolynomialSGD(epochs, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.network = NNUNet(len(modalities), classes, width=width, dims=dims, stages=stages)
        self.reads = {"network": tuple(modalities)}
        self.players = {"network": self.sgd}

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """One turn: the network learns from the reference, at every scale.

        Raises:
            TrainingStopped: the epoch is one after the last, whose learning rate would be zero.
        """
        self.sgd.begin(batch.epoch)  # its optimiser is asked to step next and sees no batch
        scales = self.network.at_all_scales(batch.available)
        yield (
            "network",
            {"dice": deep_dice(scales, batch.labels), "cross_entropy": deep_cross_entropy(scales, batch.labels)},
        )

    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial)."""
        logits: Tensor = self.network(images)
        return logits
