"""Mutual distillation: two segmentors teach each other, one from images of the patients' modality, one from translated ones.

Li, Yu, Wang, Heng, "Towards Cross-modality Medical Image Segmentation with Online Mutual Knowledge Distillation", AAAI 2020
(https://arxiv.org/abs/2010.01532), which CMEDL (Jiang et al., IEEE TMI 2022, https://arxiv.org/abs/2107.07985, Table III) is
compared with. Images x_a of the assistant modality (MR) are aligned: translated into such of the target's (CT), G(x_a). One
segmentor, S_t, learns from real images x_t of the target with their labels, the other, S_a, from aligned ones with theirs. Both
see x_t, and each learns to answer as the other does. At test time the answer is the mean of both.

Terms, with y labels, L_seg the loss of `segmentor` (Dice and cross-entropy) and p = softmax(z / T) the softened answers to x_t,
T the temperature
    segmentors/target                  = segmentation_weight L_seg(S_t(x_t), y_t)
    segmentors/assistant               = segmentation_weight L_seg(S_a(G(x_a)), y_a)
    segmentors/target_from_assistant   = distillation_weight T^2 mean_v KL(p_a || p_t), p_a as it is
    segmentors/assistant_from_target   = distillation_weight T^2 mean_v KL(p_t || p_a), p_t as it is

and the terms of the translation (`cyclegan` or `drit`, of the assistant into the target), `translation.` in front of their
names. "As it is": no gradient goes to the one who teaches.

Turns: those of the translation; then both segmentors, which see what it makes now and do not change it. Logits at test time are
log((softmax z_t + softmax z_a) / 2).

Differs from the paper
    1. Of the paper only the abstract could be read; the terms above are what it describes. Ours are: weight 1, temperature 2,
       the factor T^2, which keeps gradients equally large (Hinton et al., https://arxiv.org/abs/1503.02531), the direction of
       the divergence (Zhang et al., "Deep Mutual Learning", https://arxiv.org/abs/1706.00384), a teacher without gradient, and
       that answers to real images are compared, not those to aligned ones.
    2. Real and aligned images are one batch for the assistant's batch norms; the abstract says nothing of it.
    3. Its segmentors are for hearts; these are CMEDL's, with CMEDL's optimisers. Its alignment is adversarial; here it is
       CycleGAN without the contextual loss, or DRIT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam

from modistill.data.batch import Batch
from modistill.hardware import wide
from modistill.methods.base import Method, Turn, build_translation, nested, signed
from modistill.methods.fusion import BY_ITSELF
from modistill.methods.segmentor import SegmentationLoss, segmentation_loss
from modistill.networks.blocks import NormKind
from modistill.networks.segmentors import SegmentorName, build_segmentor

__all__ = ["Ensemble", "MutualDistillation", "mutual_divergence"]


class Ensemble(nn.Module):
    """The mean of the probabilities of two segmentors.

    Args:
        target: who learnt from real images.
        assistant: who learnt from aligned ones.
    """

    def __init__(self, target: nn.Module, assistant: nn.Module) -> None:
        super().__init__()
        self.target, self.assistant = target, assistant

    def forward(self, images: Tensor) -> Tensor:
        """Logarithms (B, C, *spatial) of the mean probabilities, whose softmax they are, of images (B, 1, *spatial)."""
        one, other = (wide(network(images)).log_softmax(1) for network in (self.target, self.assistant))
        return torch.logaddexp(one, other) - log(2)


class MutualDistillation(Method):
    """A translation of the assistant modality, and two segmentors of the target that distil their answers into each other.

    Args:
        target: modality of the patients, which both segmentors read.
        assistant: modality of others.
        classes: number of classes C, background included.
        network: "unet", "fc_densenet" or "mrrn", for both.
        width: channels of their first scale; None for CMEDL's.
        norm: "batch", "instance" or "group".
        dropout: None for the network's own.
        dims: 2 or 3.
        loss: "both", "dice" or "cross_entropy".
        segmentation_weight: of the loss.
        distillation_weight: of each of the two divergences; 0 leaves them out.
        temperature: T; above 1 it softens.
        translator: "cyclegan" or "drit".
        translation: arguments of that method, but for modalities and dims; `contextual_weight` is 0 unless it is among them.
        lr: learning rate of the segmentors' Adam.
        betas: of that Adam.

    Raises:
        ValueError: an unknown value.
        RecipeError: no such translator.
    """

    deployed = "segmentors"

    def __init__(
        self,
        target: str = "ct",
        assistant: str = "mr",
        classes: int = 2,
        *,
        network: SegmentorName = "unet",
        width: int | None = None,
        norm: NormKind = "batch",
        dropout: float | None = None,
        dims: int = 2,
        loss: SegmentationLoss = "both",
        segmentation_weight: float = 5.0,
        distillation_weight: float = 1.0,
        temperature: float = 2.0,
        translator: str = "cyclegan",
        translation: Mapping[str, Any] | None = None,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__()
        self.dims, self.loss, self.segmentation_weight = dims, loss, segmentation_weight
        self.distillation_weight, self.temperature = distillation_weight, temperature
        arguments = {**BY_ITSELF.get(translator, {}), **(translation or {})}
        self.translation = build_translation(translator, assistant, target, dims, arguments)
        segmentor = partial(build_segmentor, network, 1, classes, width=width, norm=norm, dropout=dropout, dims=dims)
        one, other = segmentor(), segmentor()
        self.segmentors, self.halvings = Ensemble(one, other), one.halvings
        self.reads = {
            **dict.fromkeys(("segmentors", "segmentors.target", "segmentors.assistant"), (target,)),
            **{f"translation.{path}": names for path, names in self.translation.reads.items()},
        }
        self.domains = ((target,), (assistant,))
        self.players = {
            **nested("translation", self.translation.players),
            "segmentors": partial(Adam, lr=lr, betas=betas, fused=True),
        }

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """The turns of the translation, then that of both segmentors."""
        for player, terms in self.translation.losses(batch):
            yield f"translation.{player}", terms

        own, other = (batch.having(domain) for domain in self.domains)
        x_t, x_a = signed(own.images), signed(other.images)
        with torch.no_grad():
            aligned = self.translation.to_target(x_a, x_t)
        z_t = self.segmentors.target(x_t)
        # In one pass: batch norms then normalise by the same mixture in training as at test time.
        z_a, z_aligned = self.segmentors.assistant(torch.cat([x_t, aligned])).split([len(x_t), len(aligned)])
        learnt = {
            "target": self._segmentation(z_t, own.labels),
            "assistant": self._segmentation(z_aligned, other.labels),
        }
        if self.distillation_weight:
            learnt["target_from_assistant"] = self.distillation_weight * mutual_divergence(z_t, z_a, self.temperature)
            learnt["assistant_from_target"] = self.distillation_weight * mutual_divergence(z_a, z_t, self.temperature)
        yield "segmentors", learnt

    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial)."""
        logits: Tensor = self.segmentors(signed(images))
        return logits

    def record(self) -> dict[str, Any]:
        """See `Method`: that of the translation."""
        return self.translation.record()

    @classmethod
    def for_inference(cls, **arguments: Any) -> Method:
        """The method with any translation, as none is asked for."""
        return cls(**{name: value for name, value in arguments.items() if name not in {"translator", "translation"}})

    def _segmentation(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.segmentation_weight * segmentation_loss(logits, labels, self.loss)


def mutual_divergence(learner: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 mean_v KL(p || q) of the softened classes p of the teacher, who gets no gradient, and q of the learner.

    Args:
        learner: logits (B, C, *spatial).
        teacher: logits of the same shape.
        temperature: T.

    Returns:
        A scalar in nats, zero where both give the same probabilities, computed in float32 at least.

    Example:
        >>> teacher = torch.tensor([9.0, 1.0]).log().reshape(1, 2, 1)  # at T = 2 three to one
        >>> round(mutual_divergence(torch.zeros(1, 2, 1), teacher, 2.0).item(), 4)  # 4 (3/4 ln 3/2 + 1/4 ln 1/2)
        0.5232
    """
    log_q, log_p = ((wide(z) / temperature).log_softmax(1) for z in (learner, teacher.detach()))
    return temperature**2 * functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1).mean()
