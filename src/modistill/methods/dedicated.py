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
    4. Preparation, augmentation, mirroring and the share of patches with foreground are the recipe's, not nnU-Net's; the
       weights that are kept are the best on validation cases, not the last.
Differs from Ruffle et al.
    5. They used nnU-Net's first version, whose heads and transposed convolutions have no biases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from modistill.data.batch import Batch
from modistill.errors import TrainingStopped
from modistill.losses.segmentation import soft_dice, weighted_cross_entropy
from modistill.methods.base import Method, Turn
from modistill.networks.nnunet import NNUNet

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
        if epochs < 1 or not 0 < momentum < 1:
            raise ValueError(f"epochs is {epochs} and momentum {momentum}; 1 or more, and between 0 and 1, are needed")
        self.network = NNUNet(len(modalities), classes, width=width, dims=dims, stages=stages)
        self.epoch, self.epochs, self.lr = 0, epochs, lr
        self.sgd = partial(SGD, lr=lr, momentum=momentum, nesterov=True, weight_decay=weight_decay, fused=True)
        self.reads = {"network": tuple(modalities)}
        self.players = {"network": self._optimizer}

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """One turn: the network learns from the reference, at every scale.

        Raises:
            TrainingStopped: the epoch is one after the last, whose learning rate would be zero.
        """
        if batch.epoch >= self.epochs:
            raise TrainingStopped(
                f"the learning rate has fallen to zero after {self.epochs} epochs",
                remedy="leave out method.epochs, or give it the value of training.epochs",
            )
        self.epoch = batch.epoch  # for the optimiser, which is asked to step next and sees no batch
        scales = self.network.at_all_scales(batch.available)
        weighted = [(w, z, _nearest(batch.labels, z.shape[2:])) for w, z in zip(_weights(len(scales)), scales, strict=False)]
        yield (
            "network",
            {
                "dice": torch.stack([w * _dice_loss(z, y) for w, z, y in weighted]).sum(),
                "cross_entropy": torch.stack(
                    [w * weighted_cross_entropy(z, y, z.new_ones(z.shape[1])) for w, z, y in weighted]
                ).sum(),
            },
        )

    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial)."""
        logits: Tensor = self.network(images)
        return logits

    def _optimizer(self, parameters: Iterable[nn.Parameter]) -> SGD:
        """SGD that takes its rate from the epoch, before every step."""
        optimizer = self.sgd(parameters)
        optimizer.register_step_pre_hook(self._set_rate)
        return optimizer

    def _set_rate(self, optimizer: Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.lr * (1 - self.epoch / self.epochs) ** 0.9


def _weights(scales: int) -> list[float]:
    """Weights of the scales, halving from one to the next, with sum 1; the coarsest has none, unless it is the only one."""
    halving = [0.5**s for s in range(max(1, scales - 1))]
    return [weight / sum(halving) for weight in halving]


def _nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (B, *spatial) at another size, each from the nearest voxel."""
    return functional.interpolate(labels[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long()


def _dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - soft Dice of logits (B, C, *spatial) and labels (B, *spatial), mean over samples and classes but the background."""
    reference = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    return 1 - soft_dice(logits.softmax(1)[:, 1:], reference[:, 1:]).mean()
