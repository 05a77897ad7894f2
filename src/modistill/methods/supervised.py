"""Supervised segmentation with the modalities it is given: the teacher, and the control of every comparison.

Given all modalities this is the *Teacher* of Vadacchino et al., "HAD-Net: A Hierarchical Adversarial Knowledge Distillation
Network for Improved Enhanced Tumour Segmentation Without Post-Contrast Images", MIDL 2021
(https://arxiv.org/abs/2103.16617); given those available at test time it is the paper's *Pre-trained Student*, the start of
HAD-Net's student. Trained on from there without distillation, with HAD-Net's own budget and optimiser, it is the *control*.

Terms
    network/segmentation   L_CE = sum_v w_y(v) * -log p_y(v)(v) / sum_v w_y(v)       weighted cross-entropy, Eq. (1), first term

with the weight of class c in epoch e   w_c(e) = max(w_c(0) * 0.98^e, 1); weights below 1 stay as they are.

Differs from the authors' code
    1. The cross-entropy is normalised per volume and then averaged over the batch. At their batch size of 1 it is the same.
    2. Their pre-training creates a learning-rate plateau schedule and never steps it, so the published numbers presumably come
       from a constant rate: the default here. The paper's reading (halve after 30 epochs without improvement) is
       `training.plateau: {factor: 0.5, patience: 30}` in a recipe.
    3. Their class weights are constants of BraTS 2019; here they are an argument (computed from the training cases, or given).
    4. Every sample draws its own augmentation; their forked workers repeat the same few draws in every epoch.
    5. Recipes do not set the precision: bf16 where the hardware has it, theirs is fp32.
    6. Mask and crop rest on the available modalities, not on all four: see `data.preprocessing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor
from torch.optim import AdamW

from modistill.data.batch import Batch
from modistill.losses.segmentation import decayed, weighted_cross_entropy
from modistill.methods.base import Method, Turn, class_weights_buffer
from modistill.networks.unet import UNet

__all__ = ["Supervised"]


class Supervised(Method):
    """One network, learning from the reference labels alone.

    Args:
        modalities: what it reads, in training and at test time.
        classes: number of classes C, background included.
        width: feature maps of the first block (k in the paper).
        dims: 2 or 3.
        dropout: probability of dropping a feature map at the entry of each block.
        class_weights: (C,) initial weights of the cross-entropy; None for equal weights.
        class_weight_decay: factor per epoch by which they fall towards 1; 1.0 keeps them.
        lr: learning rate of AdamW.
        betas: of AdamW.
        weight_decay: of AdamW, on every parameter.
    """

    deployed = "network"

    def __init__(
        self,
        modalities: tuple[str, ...] = ("flair", "t1ce", "t1", "t2"),
        classes: int = 4,
        *,
        width: int = 32,
        dims: int = 3,
        dropout: float = 0.2,
        class_weights: Sequence[float] | None = None,
        class_weight_decay: float = 0.98,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-5,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.network = UNet(len(modalities), classes, width=width, dims=dims, dropout=dropout)
        self.register_buffer("class_weights", class_weights_buffer(class_weights, classes), persistent=False)
        self.class_weight_decay = class_weight_decay
        self.reads = {"network": tuple(modalities)}
        self.players = {"network": partial(AdamW, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)}

    class_weights: Tensor

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """One turn: the network learns from the reference."""
        weights = decayed(self.class_weights, batch.epoch, self.class_weight_decay)
        yield "network", {"segmentation": weighted_cross_entropy(self.network(batch.all), batch.labels, weights)}

    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial)."""
        logits: Tensor = self.network(images)
        return logits
