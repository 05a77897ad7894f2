"""One of CMEDL's segmentors with the labels of its own modality: "CT only", the control of unpaired distillation.

Jiang et al., "Unpaired Cross-Modality Educed Distillation (CMEDL) for Medical Image Segmentation", IEEE TMI 2022
(https://arxiv.org/abs/2107.07985). The student of CMEDL learns from its own labels and from the hints of a teacher; without the
hints, this is what is left.

Terms, with p the softmax of the logits and g the reference, one-hot
    network/segmentation   L_seg = weight * (3/4 L_Dice + 1/4 L_CE)

    L_Dice = 1 - mean_c (2 sum_v p g + s) / (sum_v p + sum_v g + s), background included, s = 1e-3
    L_CE   = mean_v -log p_y(v)(v)

Differs from the paper
    1. Its text says Dice, its equation 1 negative log-likelihood. The default is the mixture of a later training code of the
       group; `loss="dice"` and `"cross_entropy"` are the two readings. Dice by itself often settles at one class for all.
    2. The betas of Adam are not stated; (0.5, 0.999) are those of the group's other methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

from torch import Tensor
from torch.nn import functional
from torch.optim import Adam

from modistill.data.batch import Batch
from modistill.hardware import wide
from modistill.losses.segmentation import dice_loss
from modistill.methods.base import Method, Turn, signed
from modistill.networks.blocks import NormKind
from modistill.networks.segmentors import SegmentorName, build_segmentor

__all__ = ["SegmentationLoss", "Segmentor", "segmentation_loss"]

SegmentationLoss = Literal["both", "dice", "cross_entropy"]


class Segmentor(Method):
    """A segmentor that learns from the labels of its modalities alone.

    Args:
        modalities: what it reads, in training and at test time.
        classes: number of classes C, background included.
        network: "unet", "fc_densenet" or "mrrn".
        width: channels of its first scale; None for the paper's.
        norm: "batch", "instance" or "group".
        dropout: None for the paper's.
        dims: 2 or 3.
        loss: "both", "dice" or "cross_entropy".
        segmentation_weight: of the loss; the paper's 5.
        lr: learning rate of Adam.
        betas: of Adam.
    """

    deployed = "network"

    def __init__(
        self,
        modalities: tuple[str, ...] = ("ct",),
        classes: int = 2,
        *,
        network: SegmentorName = "unet",
        width: int | None = None,
        norm: NormKind = "batch",
        dropout: float | None = None,
        dims: int = 2,
        loss: SegmentationLoss = "both",
        segmentation_weight: float = 5.0,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__()
        self.dims = dims
        self.network = build_segmentor(network, len(modalities), classes, width=width, norm=norm, dropout=dropout, dims=dims)
        self.halvings = self.network.halvings
        self.loss, self.segmentation_weight = loss, segmentation_weight
        self.reads = {"network": tuple(modalities)}
        self.domains = (tuple(modalities),)  # of a cohort of two modalities, the cases of this one
        self.players = {"network": partial(Adam, lr=lr, betas=betas, fused=True)}

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """One turn: the network learns from the reference."""
        own = batch.having(self.reads["network"])
        logits = self.network(signed(own.images))
        yield "network", {"segmentation": self.segmentation_weight * segmentation_loss(logits, own.labels, self.loss)}

    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial)."""
        logits: Tensor = self.network(signed(images))
        return logits


def segmentation_loss(logits: Tensor, labels: Tensor, form: SegmentationLoss = "both") -> Tensor:
    """Dice, cross-entropy, or both as 3 to 1.

    Args:
        logits: (B, C, *spatial).
        labels: (B, *spatial) int64.
        form: which.
    """
    if form == "dice":
        return dice_loss(logits, labels)
    entropy = functional.cross_entropy(wide(logits), labels)
    return entropy if form == "cross_entropy" else (3 * dice_loss(logits, labels) + entropy) / 4
