"""Single-stage distillation: teacher and student learn in the same iterations, and their latents by Barlow Twins.

Choi et al., "A single stage knowledge distillation network for brain tumor segmentation on limited MR image modalities",
Computer Methods and Programs in Biomedicine 2023 (https://doi.org/10.1016/j.cmpb.2023.107644), with the loss of Zbontar et al.,
ICML 2021 (https://arxiv.org/abs/2103.03230), on networks as nnU-Net plans them (https://doi.org/10.1038/s41592-020-01008-z).
The teacher sees all modalities, the student those that a patient has; no teacher is trained in advance. In every iteration
the teacher learns first, then the student, from its labels and from the teacher's latent.

Terms, with z_s the student's logits of scale s, t_s the teacher's, w_s the scale's weight, y_s its labels
(`losses.deep_supervision`), C the correlation of the features of both latents over voxels and D their number (`losses.barlow`)
    teacher/cross_entropy          = sum_s w_s CE(t_s, y_s)
    teacher/dice                   = sum_s w_s (1 - soft Dice of t_s)
    student/cross_entropy          = sum_s w_s CE(z_s, y_s)
    student/dice                   = sum_s w_s (1 - soft Dice of z_s)
    student/barlow                 L_BT = a(e) / D (sum_i (C_ii - 1)^2 + off_diagonal sum_{i != j} C_ij^2)
    student/latent                 = a(e) mean |latent_S - latent_T|, with `latent="l1"`
    student/soft_labels            = soft_weight T^2 sum_s w_s CE(softmax(z_s / T), softmax(t_s / T))
    student/mean_diagonal          = mean_i C_ii, watched: no gradient
    student/rms_off_diagonal       = sqrt(mean_{i != j} C_ij^2), watched
    student/rank_student           = effective rank of the student's latent, watched
    student/rank_teacher           = effective rank of the teacher's latent, watched
    student/alignment              = linear CKA of both latents, watched

The weight a(e) rises over the first `warm_up` of the epochs from 0 to `latent_weight`: a teacher who knows nothing has nothing
to say. With `mode="joint"` there is one turn, in which both networks learn from the sum, Barlow Twins included; its terms are
    both/teacher_cross_entropy = , both/teacher_dice = , both/cross_entropy = , both/dice = , both/barlow = , both/latent = ,
    both/soft_labels = , both/mean_diagonal = , both/rms_off_diagonal = , both/rank_student = , both/rank_teacher = and
    both/alignment = as above.

With `mode="two_stage"` the teacher is frozen, and comes from a run of its own (`start_from: {teacher: ...}`): the usual order.

Differs from the paper
    Of its text abstract and highlights could be read. They say: one stage, both networks "successively" within an iteration,
    Barlow Twins on the latent space, deep supervision with cross-entropy, nnU-Net. The rest is a choice of this file:
    1. Voxels of the bottleneck are the samples of C. With nnU-Net's batch of 2 as samples every feature is +-1 and the loss
       says nothing; `samples_of="batch"` and `"pooled"` are that reading, and are refused below `smallest_sample` samples.
    2. The loss is divided by D, which makes it comparable with the others. No gradient reaches the teacher but in joint mode.
       The teacher's latent is that of before its step.
    3. Dice is added to the cross-entropy, as nnU-Net does: `dice=False` leaves it out.
    4. Soft labels, a reading of "pixel level" other than deep supervision, have weight 0.
    5. Weight, warm-up and `off_diagonal` are those of Barlow Twins or ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.data.batch import Batch
from modistill.distributed import rank_sum
from modistill.hardware import wide
from modistill.losses.barlow import SamplesOf, barlow_twins, cells_with, diagnose, samples
from modistill.losses.deep_supervision import deep_cross_entropy, deep_dice, deep_soft_labels
from modistill.methods.base import Method, Turn, frozen
from modistill.networks.nnunet import NNUNet
from modistill.networks.projector import VoxelProjector
from modistill.schedules import PolynomialSGD

__all__ = ["BarlowDistillation"]


class Learner(nn.Module):
    """The student's network and, if there is one, the projector for both latents."""

    def __init__(self, network: NNUNet, projector: VoxelProjector | None) -> None:
        super().__init__()
        self.network, self.projector = network, projector


class BarlowDistillation(Method):
    """A teacher of all modalities and a student of some, of one size.

    Args:
        modalities: what the teacher reads.
        available: what the student reads, of these.
        classes: number of classes C, background included.
        width: channels of the first stage of both networks.
        dims: 2 or 3.
        stages: number of scales of both networks.
        mode: "successive", "joint" or "two_stage".
        latent: what is asked of the latents: "barlow", "l1" or "none".
        latent_weight: of that term.
        warm_up: share of the epochs over which its weight rises from 0.
        above: stages above the lowest from which the latent is taken; 0 is the bottleneck.
        samples_of: "voxels", "pooled", "batch" or "channels", see `losses.barlow`.
        smallest_sample: number of samples below which the loss is refused.
        only_head: keep the voxels of the latent alone whose block shows some of the head.
        off_diagonal: lambda of Barlow Twins.
        diagonal_only: leave out what it multiplies.
        projector: channels of its layers; None for no projector.
        dice: Dice beside the cross-entropy.
        soft_weight: of the teacher's soft labels.
        temperature: T of these.
        epochs: over which the learning rate falls to zero; a recipe that leaves it out gets `training.epochs`.
        lr: learning rate of SGD in the first epoch.
        momentum: of SGD, Nesterov's.
        weight_decay: of SGD, on every parameter.

    Raises:
        ValueError: an argument that does not fit another, or is no number it can be.
    """

    deployed = "student.network"

    def __init__(
        self,
        modalities: tuple[str, ...] = ("flair", "t1ce", "t1", "t2"),
        available: tuple[str, ...] = ("flair", "t1ce"),
        classes: int = 4,
        *,
        width: int = 32,
        dims: int = 3,
        stages: int = 6,
        mode: Literal["successive", "joint", "two_stage"] = "successive",
        latent: Literal["barlow", "l1", "none"] = "barlow",
        latent_weight: float = 1.0,
        warm_up: float = 0.1,
        above: int = 0,
        samples_of: SamplesOf = "voxels",
        smallest_sample: int = 32,
        only_head: bool = False,
        off_diagonal: float = 0.005,
        diagonal_only: bool = False,
        projector: Sequence[int] | None = None,
        dice: bool = True,
        soft_weight: float = 0.0,
        temperature: float = 1.0,
        epochs: int = 1000,
        lr: float = 1e-2,
        momentum: float = 0.99,
        weight_decay: float = 3e-5,
    ) -> None:
        super().__init__()
        if not 0 <= warm_up <= 1 or temperature <= 0 or not 0 <= above < stages - 1:
            raise ValueError(
                f"warm_up {warm_up} must lie in [0, 1], temperature {temperature} above 0, above {above} in 0 ... {stages - 2}"
            )
        if only_head and samples_of not in {"voxels", "pooled"}:
            raise ValueError(f"only_head goes with samples_of voxels or pooled, not {samples_of}")
        network = partial(NNUNet, classes=classes, width=width, dims=dims, stages=stages)
        self.teacher, student = network(len(modalities)), network(len(available))
        between = VoxelProjector(student.latent_channels(above), projector, dims=dims) if projector else None
        self.student = Learner(student, between)
        self.dims, self.mode, self.dice, self.latent, self.above = dims, mode, dice, latent, above
        self.latent_weight, self.warm_up_epochs = latent_weight, warm_up * epochs
        self.samples_of, self.only_head = samples_of, only_head
        self.barlow = partial(
            barlow_twins, off_diagonal=off_diagonal, diagonal_only=diagonal_only, smallest=smallest_sample, rank_sum=rank_sum
        )
        self.soft_weight, self.temperature = soft_weight, temperature
        self.sgd = PolynomialSGD(epochs, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.reads = {"teacher": tuple(modalities), "student.network": tuple(available)}
        self.players = {"teacher": self.sgd, "student": self.sgd}
        if mode == "joint":
            self.both = nn.ModuleDict({"teacher": self.teacher, "student": self.student})
            self.players = {"both": self.sgd}
        if mode == "two_stage":
            frozen(self.teacher).eval()
            self.players, self.silent, self.learnt_before = {"student": self.sgd}, ("teacher",), ("teacher",)

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """The turns of teacher and student, or the one of both."""
        self.sgd.begin(batch.epoch)
        joint = self.mode == "joint"
        with torch.set_grad_enabled(self.mode != "two_stage"):
            latent_t, scales_t = self.teacher.with_latent(batch.all, self.above)
        taught = self._supervised(scales_t, batch.labels) if self.mode != "two_stage" else {}
        if self.mode == "successive":
            yield "teacher", taught
            latent_t, scales_t = latent_t.detach(), [t.detach() for t in scales_t]

        latent_s, scales_s = self.student.network.with_latent(batch.available, self.above)
        terms = dict(self._supervised(scales_s, batch.labels))
        terms |= self._latent_terms(latent_s, latent_t, batch)
        if self.soft_weight:
            terms["soft_labels"] = self.soft_weight * deep_soft_labels(scales_s, scales_t, self.temperature)
        if joint:
            terms |= {f"teacher_{name}": term for name, term in taught.items()}
        yield "both" if joint else "student", terms

    def segment(self, images: Tensor) -> Tensor:
        """The student's logits (B, C, *spatial)."""
        logits: Tensor = self.student.network(images)
        return logits

    def _supervised(self, scales: Sequence[Tensor], labels: Tensor) -> Mapping[str, Tensor]:
        terms = {"cross_entropy": deep_cross_entropy(scales, labels)}
        return terms | ({"dice": deep_dice(scales, labels)} if self.dice else {})

    def _latent_terms(self, student: Tensor, teacher: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The term between the latents, and what is watched of them."""
        rise = min(1.0, batch.epoch / self.warm_up_epochs) if self.warm_up_epochs else 1.0
        if self.latent == "none":
            return {}
        if self.student.projector is not None:
            student, teacher = self.student.projector(student), self.student.projector(teacher)
        if self.latent == "l1":
            return {"latent": rise * self.latent_weight * functional.l1_loss(wide(student), wide(teacher))}
        mask = None
        if self.only_head:  # on the grid that the network makes of the images, whose blocks the voxels of the latent are
            mask = cells_with((self.teacher.filled_up(batch.all) != 0).any(1), student.shape[2:])
        s, t = samples(student, self.samples_of, mask), samples(teacher, self.samples_of, mask)
        found = diagnose(s, t, rank_sum=rank_sum)
        return {
            "barlow": rise * self.latent_weight * self.barlow(s, t),
            "mean_diagonal": found.diagonal,
            "rms_off_diagonal": found.off_diagonal,
            "rank_student": found.rank_student,
            "rank_teacher": found.rank_teacher,
            "alignment": found.cka,
        }
