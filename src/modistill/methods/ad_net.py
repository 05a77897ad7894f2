"""AD-Net: HAD-Net with a critic that sees segmentations and images only, no feature maps.

The ablation of that name in Vadacchino et al., "HAD-Net: A Hierarchical Adversarial Knowledge Distillation Network for Improved
Enhanced Tumour Segmentation Without Post-Contrast Images", MIDL 2021 (https://arxiv.org/abs/2103.16617). Everything but the
critic D is `HADNet`'s: turns, losses, threshold, optimisers, and the start from supervised training.

Turns and terms
    student/segmentation   CE_w(S(X_pre), y)                       Eq. (1), first term
    student/adversarial    lambda * mean (D(X_pre, S) - 1)^2       Eq. (1), second term, D for HD
    critic/on_teacher      mean (D(X_pre, T) - 1)^2                Eq. (2), D for HD
    critic/on_student      mean (D(X_pre, S) - 0)^2                Eq. (2), D for HD

Choice where the paper is silent (no code was published for AD-Net)
    1. A layer of HAD-Net's critic reads its predecessor's maps and as many of the U-Net's. Without the latter either the output
       widths can stay (128, 256, 512, 1024: 44,164,992 parameters, the default) or the input widths (256, 512, 1024, and 1024
       at the end: 109,234,944 parameters). HAD-Net's critic, between the two, has 88,205,184.

Differs from the paper, and from the authors' code of HAD-Net (there is none of AD-Net), as `had_net` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from modistill.methods.had_net import HADNet
from modistill.networks.critic import HierarchicalCritic

__all__ = ["ADNet"]


class ADNet(HADNet):
    """A student that learns from the labels and from a critic who has seen the teacher's segmentations.

    Args:
        modalities: what the teacher reads.
        available: what the student reads: the modalities that exist at test time.
        classes: number of classes C, background included.
        width: feature maps of the first block (k in the paper); the critic's widths follow.
        dims: 2 or 3.
        dropout: probability of dropping a feature map at the entry of each block of teacher and student.
        class_weights: (C,) constant weights of the cross-entropy; None for equal weights.
        adversarial_weight: lambda of Eq. (1).
        critic_rests_above: accuracy of the critic above which it takes no turn.
        critic_widths: which widths of HAD-Net's critic stay, those of its layers' "outputs" or "inputs".
        teacher_dropout: whether the frozen teacher drops feature maps while training.
        critic_sees: "logits" or "probabilities" of the segmentation.
        lr: learning rate of both Adam optimisers.
        betas: of both Adam optimisers.
    """

    def __init__(
        self,
        modalities: tuple[str, ...] = ("flair", "t1ce", "t1", "t2"),
        available: tuple[str, ...] = ("flair", "t1", "t2"),
        classes: int = 4,
        *,
        width: int = 32,
        dims: int = 3,
        dropout: float = 0.2,
        class_weights: Sequence[float] | None = None,
        adversarial_weight: float = 0.2,
        critic_rests_above: float = 0.8,
        critic_widths: Literal["outputs", "inputs"] = "outputs",
        teacher_dropout: bool = True,
        critic_sees: Literal["logits", "probabilities"] = "logits",
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__(
            modalities,
            available,
            classes,
            width=width,
            dims=dims,
            dropout=dropout,
            class_weights=class_weights,
            adversarial_weight=adversarial_weight,
            critic_rests_above=critic_rests_above,
            teacher_dropout=teacher_dropout,
            critic_sees=critic_sees,
            lr=lr,
            betas=betas,
        )
        self.critic = HierarchicalCritic(
            classes + len(available), width=width, dims=dims, hierarchical=False, widths=critic_widths
        )
