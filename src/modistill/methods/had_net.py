"""HAD-Net: hierarchical adversarial knowledge distillation.

Vadacchino, Mehta, Sepahvand, Nichyporuk, Clark, Arbel: "HAD-Net: A Hierarchical Adversarial Knowledge Distillation Network for
Improved Enhanced Tumour Segmentation Without Post-Contrast Images", MIDL 2021 (https://arxiv.org/abs/2103.16617).

A frozen teacher T sees all modalities; the student S does without the privileged ones. A critic HD sees a segmentation together
with the student's modalities X_pre and with the feature maps of the network that made it, at three scales, and learns to tell
teacher from student; the student learns to segment and to be taken for the teacher.

Turns and terms
    student/segmentation   CE_w(S(X_pre), y)                        Eq. (1), first term
    student/adversarial    lambda * mean (HD(X_pre, S) - 1)^2       Eq. (1), second term
    critic/on_teacher      mean (HD(X_pre, T) - 1)^2                Eq. (2)
    critic/on_student      mean (HD(X_pre, S) - 0)^2                Eq. (2)

The critic rests while it tells the two apart in more than 80 % of its patches. Both networks start from supervised training
(`Supervised` on all and on the available modalities): `start_from: {teacher: RUN, student: RUN}` in a recipe.

Differs from the paper, as the authors' code does (which presumably made the published numbers)
    1. The frozen teacher keeps its dropout active: `teacher_dropout=False` silences it (the paper says nothing).
    2. The critic sees logits: `critic_sees="probabilities"` shows it the softmax (the paper says "segmentations").
    3. The class weights stay at their initial values; the paper describes their decay under pre-training.
    4. The threshold is 0.8, the cut of a patch 0.5 inclusive on both sides (the paper names neither).
    5. Widths: the U-Net's centre narrows from 16k to 8k and the second convolution of decoder blocks u4 to u2 halves (in the
       paper all convolutions of a block are equal); the critic's layers have k 2^(n+1) maps (the paper prints k (2n + 1)).
    6. Images are clipped and scaled to [0, 1] after the z-score (`data.normalisation: hadnet` in a recipe), and cropped
       to the brain's box, then padded (the paper: a centre crop).
Differs from the authors' code
    7. The class weights are an argument, equal ones by default, computed from the training cases in the recipes; theirs are the
       constants 1, 59.4507, 23.3190, 71.8481. Recipes do not set the precision: bf16 where the hardware has it, theirs is fp32.
    8. The cross-entropy is normalised per volume, then averaged over the batch (the same at their batch size of 1).
    9. In the student's turn the critic receives no gradients (theirs does, and throws them away).
    10. Mask and crop rest on the available modalities, not on all four, and nothing is left outside the mask (as in the paper;
        their code leaves some): see `data.preprocessing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Adam

from modistill.data.batch import Batch
from modistill.distributed import rank_mean
from modistill.losses.adversarial import accuracy, least_squares
from modistill.losses.segmentation import weighted_cross_entropy
from modistill.methods.base import Method, Turn, class_weights_buffer, frozen
from modistill.networks.critic import HierarchicalCritic
from modistill.networks.unet import Hierarchy, UNet

__all__ = ["HADNet"]


class HADNet(Method):
    """A student that learns from the labels and from a critic who knows the teacher.

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
        teacher_dropout: whether the frozen teacher drops feature maps while training.
        critic_sees: "logits" or "probabilities" of the segmentation.
        lr: learning rate of both Adam optimisers.
        betas: of both Adam optimisers.
    """

    deployed = "student"
    learnt_before = ("teacher",)

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
        teacher_dropout: bool = True,
        critic_sees: Literal["logits", "probabilities"] = "logits",
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__()
        self.dims = dims
        self.teacher = frozen(UNet(len(modalities), classes, width=width, dims=dims, dropout=dropout))
        self.student = UNet(len(available), classes, width=width, dims=dims, dropout=dropout)
        self.critic = HierarchicalCritic(classes + len(available), width=width, dims=dims)
        self.register_buffer("class_weights", class_weights_buffer(class_weights, classes), persistent=False)
        self.adversarial_weight = adversarial_weight
        self.critic_rests_above = critic_rests_above
        self.silent = () if teacher_dropout else ("teacher",)
        self.shown = torch.nn.Identity() if critic_sees == "logits" else torch.nn.Softmax(dim=1)
        self.reads = {"teacher": tuple(modalities), "student": tuple(available)}
        adam = partial(Adam, lr=lr, betas=betas, fused=True)
        self.players = {"student": adam, "critic": adam}

    class_weights: Tensor

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """The student's turn, then the critic's unless it rests."""
        x, y = batch.available, batch.labels
        with torch.no_grad():
            t, f_t = _with_hierarchy(self.teacher, batch.all)
        s, f_s = _with_hierarchy(self.student, x)

        yield (
            "student",
            {
                "segmentation": weighted_cross_entropy(s, y, self.class_weights),
                "adversarial": self.adversarial_weight * least_squares.real(self.critic(self.shown(s), x, f_s)),
            },
        )

        on_teacher = self.critic(self.shown(t), x, f_t)
        on_student = self.critic(self.shown(s.detach()), x, f_s.detached())
        if rank_mean(accuracy(on_teacher, on_student)) <= self.critic_rests_above:
            yield (
                "critic",
                {
                    "on_teacher": least_squares.real(on_teacher),
                    "on_student": least_squares.fake(on_student),
                },
            )

    def segment(self, images: Tensor) -> Tensor:
        """The student's logits (B, C, *spatial)."""
        logits: Tensor = self.student(images)
        return logits


def _with_hierarchy(network: UNet, images: Tensor) -> tuple[Tensor, Hierarchy]:
    """Logits, and the maps that the critic sees; the large outer ones are let go."""
    logits, features = network.with_features(images)
    return logits, features.hierarchy()
