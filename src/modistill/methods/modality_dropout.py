"""Modality dropout: one U-Net for every subset of the modalities, trained with modalities left out at random.

Neverova, Wolf, Taylor, Nebout: "ModDrop: Adaptive Multi-Modal Gesture Recognition", TPAMI 2016
(https://arxiv.org/abs/1501.00102); for brain tumours "sequence dropout", Feng et al., "Brain Tumor Segmentation for Multi-Modal
MRI with Missing Information", Journal of Digital Imaging 2023 (https://doi.org/10.1007/s10278-023-00860-7).

The simplest model that takes whatever a patient has, and the control of every method that does: no fusion, no distillation.
For each sample of a batch a subset of what the case has is drawn anew; everything else is zero.

Turns and terms, with x_m the modalities, and d_m = 1 for those drawn, else 0
    network/segmentation   L_CE = CE_w(U(d_1 x_1, ..., d_M x_M), y)

CE_w is the weighted cross-entropy of `Supervised`, whose class weights fall towards 1; U-Net and optimiser are its own, too
(with `feature_dropout` 0 by default; the recipes set it). At test time d_m = 1 for what the patient has.

Differs from the papers
    1. Subsets are drawn as in U-HeMIS and U-HVED (Dorent et al., MICCAI 2019): first how many, uniformly, then which. ModDrop
       drops each modality independently. Here the empty subset never comes, single modalities and the full set often.
    2. All is trained at once: neither ModDrop's separate initialisation of each modality nor its gradual fusion.
    3. What is there is not scaled up for what is missing: the instance norm after the first convolution undoes common factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor
from torch.optim import AdamW

from modistill.data.batch import Batch
from modistill.losses.segmentation import decayed, weighted_cross_entropy
from modistill.methods.base import AnySubsetMethod, Turn, class_weights_buffer
from modistill.networks.unet import UNet
from modistill.subsets import draw_subset, only_present

__all__ = ["ModalityDropout"]


class ModalityDropout(AnySubsetMethod):
    """One network for all subsets of the modalities, which are its channels.

    Args:
        modalities: what it can read.
        classes: number of classes C, background included.
        width: feature maps of the first block.
        dims: 2 or 3.
        dropout: probability that a training case is seen through a random subset of its modalities, not all.
        feature_dropout: probability of dropping a feature map at the entry of each block (`dropout` of `Supervised`).
        class_weights: (C,) initial weights of the cross-entropy; None for equal weights.
        class_weight_decay: factor per epoch by which they fall towards 1; 1.0 keeps them.
        lr: learning rate of AdamW.
        betas: of AdamW.
        weight_decay: of AdamW, on every parameter.

    Raises:
        ValueError: a dropout outside [0, 1], or class weights that are not C positive numbers.
    """

    deployed = "network"

    def __init__(
        self,
        modalities: tuple[str, ...] = ("flair", "t1ce", "t1", "t2"),
        classes: int = 4,
        *,
        width: int = 32,
        dims: int = 3,
        dropout: float = 1.0,
        feature_dropout: float = 0.0,
        class_weights: Sequence[float] | None = None,
        class_weight_decay: float = 0.98,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-5,
    ) -> None:
        super().__init__()
        self.dims = dims
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}, a probability lies between 0 and 1")
        self.network = UNet(len(modalities), classes, width=width, dims=dims, dropout=feature_dropout)
        self.register_buffer("class_weights", class_weights_buffer(class_weights, classes), persistent=False)
        self.dropout, self.class_weight_decay = dropout, class_weight_decay
        self.reads = {"network": tuple(modalities)}
        self.players = {"network": partial(AdamW, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)}

    class_weights: Tensor

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """One turn: the network learns from a random subset of what each case has."""
        shown = draw_subset(batch.presence, self.dropout)
        weights = decayed(self.class_weights, batch.epoch, self.class_weight_decay)
        logits = self.segment_subset(batch.all, shown)
        yield "network", {"segmentation": weighted_cross_entropy(logits, batch.labels, weights)}

    def segment_subset(self, images: Tensor, presence: Tensor) -> Tensor:
        """Logits (B, C, *spatial)."""
        logits: Tensor = self.network(only_present(images, presence))
        return logits
