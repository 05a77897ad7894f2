"""UTAD-Net: a student that translates slices between any two sequences, and finds the tumour itself.

Huang, Wei, Li, "Unsupervised Tumor-Aware Distillation for Multi-Modal Brain Image Translation", IJCNN 2024
(https://arxiv.org/abs/2403.20168). The teacher (`utad_teacher`) sees in its second branch the tumour, cut out by a mask; the
student, of the same size, sees the whole slice in both, and learns to make what the teacher makes. So a patient needs no mask.

Terms, beside those of the teacher with G(x, x, k) in place of G(x, t, k), with F and F_T the maps in which the branches of
student and teacher meet and x'_T the teacher's translation
    generator/feature              = feature_weight mean |F - F_T|
    generator/image                = image_weight mean |x' - x'_T|

These too, as in `utad_teacher`:
    critics.whole/real = , critics.whole/fake = , critics.whole/modality = , critics.whole/penalty = , critics.tumour/real = ,
    critics.tumour/fake = , critics.tumour/modality = , critics.tumour/penalty = , generator/adversarial = ,
    generator/adversarial_tumour = , generator/modality = , generator/modality_tumour = , generator/reconstruction = ,
    generator/local_consistency = and generator/local_reconstruction = .

The student starts as a copy of the teacher, all but the tumour's encoder, which starts anew, as both critics do. The teacher is
a run of its own (`start_from: {teacher: ...}`), frozen and in eval mode.

Schemes of the paper's Fig. 4: "a" is UTAD-Net; "b" has the branch of the whole slice alone, and no critic of tumours; "c" lacks
the tumour's encoder; "d" its decoder: the tumour is cut out of the whole slice. The authors' code has "a" only; how the others
are wired is our reading. Scheme "b" with neither teacher nor distillation is StarGAN with another generator.

Differs from the paper and from the authors' code as `utad_teacher` does; in `mode="fixed"` also.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from modistill.losses.translation import cycle_loss
from modistill.methods.base import Method, Terms, frozen
from modistill.methods.utad_teacher import UTADTeacher
from modistill.networks.two_branch import Scheme, Translated, TwoBranchGenerator

__all__ = ["UTADNet"]


class UTADNet(UTADTeacher):
    """A generator that needs no mask, two critics, and the teacher.

    Args:
        modalities: any of which becomes any other.
        width: channels of the first layer of all networks.
        levels: how often a generator halves a slice.
        side: voxels of a slice along every axis; a recipe that leaves it out gets that of `sampling.patch_size`.
        scheme: of the student's branches, see above.
        mode: "faithful" or "fixed", see `utad_teacher`.
        start: "teacher" for a copy of the teacher, "scratch" for weights of its own.
        feature_weight: lambda_feature.
        image_weight: lambda_sup.
        class_weight: lambda_cls.
        penalty_weight: lambda_gp.
        reconstruction_weight: lambda_rec.
        local_weight: lambda_local.
        critic_rounds: rounds of the critics for one of the generator.
        epochs: of the training; a recipe that leaves it out gets `training.epochs`.
        lr: rate of Adam in the first half of these.
        final_lr: rate after the last.
        betas: of Adam.
        dims: 2; 3 for volumes, which the paper has not.

    Raises:
        ValueError: see `UTADTeacher`.
    """

    deployed = "generator.whole"

    def __init__(
        self,
        modalities: tuple[str, ...] = ("flair", "t1", "t1ce", "t2"),
        *,
        width: int = 64,
        levels: int = 4,
        side: int = 128,
        scheme: Scheme = "a",
        mode: Literal["faithful", "fixed"] = "faithful",
        start: Literal["teacher", "scratch"] = "teacher",
        feature_weight: float = 10.0,
        image_weight: float = 10.0,
        class_weight: float = 1.0,
        penalty_weight: float = 10.0,
        reconstruction_weight: float = 10.0,
        local_weight: float = 10.0,
        critic_rounds: int = 5,
        epochs: int = 100,
        lr: float = 1e-4,
        final_lr: float = 1e-6,
        betas: tuple[float, float] = (0.9, 0.999),
        dims: int = 2,
    ) -> None:
        super().__init__(
            modalities,
            width=width,
            levels=levels,
            side=side,
            scheme=scheme,
            mode=mode,
            class_weight=class_weight,
            penalty_weight=penalty_weight,
            reconstruction_weight=reconstruction_weight,
            local_weight=local_weight,
            critic_rounds=critic_rounds,
            epochs=epochs,
            lr=lr,
            final_lr=final_lr,
            betas=betas,
            dims=dims,
        )
        self.feature_weight, self.image_weight, self.start, self.reads_tumour = feature_weight, image_weight, start, False
        self.reads = {"generator.whole": tuple(modalities)}
        if start == "teacher" or feature_weight or image_weight:
            self.teacher = frozen(TwoBranchGenerator(**self.architecture)).eval()
            self.silent = self.learnt_before = ("teacher",)
            self.reads = {"teacher": tuple(modalities), **self.reads}

    def begin(self) -> None:
        """See `Method`: the student becomes a copy of its teacher, but for the tumour's encoder."""
        if self.start == "scratch":
            return
        theirs = self.teacher.state_dict()
        ours = {name: theirs[name] for name in self.generator.state_dict() if "tumour_encoder" not in name}
        self.generator.load_state_dict(ours, strict=False)

    def distilled(self, x: Tensor, tumour: Tensor, k: Tensor, made: Translated) -> Terms:
        """What the student learns from the teacher; see `UTADTeacher`."""
        terms: dict[str, Tensor] = {}
        if self.feature_weight or self.image_weight:
            with torch.no_grad():
                taught: Translated = self.teacher(x, super().shown(x, tumour), k)
        if self.feature_weight:
            terms["feature"] = self.feature_weight * cycle_loss(made.fused, taught.fused)
        if self.image_weight:
            terms["image"] = self.image_weight * cycle_loss(made.whole, taught.whole)
        return terms

    def shown(self, x: Tensor, tumour: Tensor) -> Tensor:
        """The whole slice, in training as at test time."""
        return x

    @classmethod
    def for_inference(cls, **arguments: Any) -> Method:
        """Without critics and without the teacher."""
        return super().for_inference(**{**arguments, "start": "scratch", "feature_weight": 0.0, "image_weight": 0.0})
