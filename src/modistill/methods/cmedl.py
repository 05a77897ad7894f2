"""CMEDL: a student for CT learns from a teacher for MR, although no patient was ever imaged with both.

Jiang, Rimner, Deasy, Veeraraghavan, "Unpaired Cross-Modality Educed Distillation (CMEDL) for Medical Image Segmentation", IEEE
TMI 2022;41(5):1057-1068 (https://arxiv.org/abs/2107.07985). A translator makes of every image x_s of the student's modality one
of the teacher's, F(x_s). So the teacher T sees the student's patients, too, and the student S is taught to have the teacher's
last feature maps. Translator, teacher and student learn together from random weights. At test time the student is alone.

Terms, with x_t images of other patients in the teacher's modality, y labels, phi the maps of a site, and L_seg the loss of
`segmentor` (Dice and cross-entropy)
    translation.generators/hint           L_hint = hint_weight sum_i mean (phi_S^i(x_s) - phi_T^i(F(x_s)))^2
    translation.generators/segmentation   L_seg^pM = segmentation_weight L_seg(T(F(x_s)), y_s)
    segmentors/student                    L_seg^CT = segmentation_weight L_seg(S(x_s), y_s)               Eq. (1), third part
    segmentors/teacher_translated         L_seg^pM = segmentation_weight L_seg(T(F(x_s)), y_s)            Eq. (1), second part
    segmentors/teacher                    L_seg^rM = segmentation_weight L_seg(T(x_t), y_t)               Eq. (1), first part
    segmentors/hint                       L_hint = as above, with the translator as it is after its turn
    segmentors/outputs                    L_KD = output_weight mean_v -sum_c p_T log p_S, p = softmax(z / temperature)
    segmentors/student_augmented          = segmentation_weight L_seg(S(G(x_t)), y_t), G the way back
    segmentors/rms_student                = sqrt(mean phi_S^2), watched: no gradient
    segmentors/rms_teacher                = sqrt(mean phi_T^2), watched: no gradient
    segmentors/scale_student              = mean |gamma| of the student's last batch norm, watched
    segmentors/scale_teacher              = the same of the teacher

and the terms of the translation (`cyclegan` or `drit`), `translation.` in front of their names.

Turns, in the order of the group's code: those of the translation, its generators with the hint and L_seg^pM through both
segmentors as they are; then both segmentors, which see the translation by the generators as they are now, and do not change it.

| experiment of the paper | arguments |
|---|---|
| informative teacher (MR teaches CT) | the default |
| weak teacher (CT teaches MR), hints; and with pseudo images | `student: mr, teacher: ct`; and `augment_student: true` |
| equal teacher (T1 teaches T2, T2 teaches T1) | `student: t2, teacher: t1`, and the other way round |
| teacher without labels of its own (Table VIII, row 3) | `teacher_labels: false` |
| without contextual loss (row 1), without cycle (row 2) | `translation: {contextual_weight: 0}`, `{cycle_weight: 0}` |
| without L_seg^pM (row 4) | `teacher_sees_translations: false` |
| hints at other layers | `hints_at: low` or `mid` |
| VAE-CMEDL | `translator: drit` |
| the teacher's answer to the translation (pMRI-CMEDL); the translation | `read_out: teacher`; `translator` |
| output distillation | `hint_weight: 0, output_weight: 1, temperature: 0.5` |

Differs from the paper
    1. Hints are averaged over the elements of a map; the paper prints a sum with weight 1, which at the start is a million
       times the segmentation losses, and shrinks the maps of both networks. `hint_reduction="sum"` is the other reading. No
       gradient is stopped at the teacher, as nothing is said of it; `detach_teacher=True` does.
    2. Segmentation losses weigh 5 in both turns; the paper writes the weight in that of the translator only.
    3. In the translators' turn batch norms normalise by the batch and leave their running statistics alone, and nothing is
       dropped; in PSIGAN, the group's published code, the statistics learn there too.
    4. See `segmentor` for the segmentation loss, `cyclegan` for adversarial and contextual loss.
    5. The teacher sees translations and real images in passes of their own, so its batch norms learn a mixture of both that is
       neither's; it matters where the teacher is read out (`fusion` shows its segmentor both in one pass).
    6. The paper stops when the validation loss rises, after 100 epochs at most; here the best epoch is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam

from modistill.data.batch import Batch
from modistill.losses.distillation import hint_loss, output_distillation
from modistill.methods import load_method
from modistill.methods.base import Method, Terms, Turn, build_translation, nested, signed
from modistill.methods.fusion import Fusion
from modistill.methods.segmentor import SegmentationLoss, Segmentor, segmentation_loss
from modistill.networks.blocks import NormKind, frozen_statistics, without_dropout
from modistill.networks.hinted import HintedNetwork
from modistill.networks.segmentors import SegmentorName, build_segmentor
from modistill.networks.translating_segmentor import TranslatingSegmentor

__all__ = ["CMEDL"]


class Segmentors(nn.Module):
    """Student and teacher: one player, with one optimiser."""

    def __init__(self, student: HintedNetwork, teacher: HintedNetwork) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher


class CMEDL(Method):
    """A translation, a teacher that sees it, and a student that imitates the teacher.

    Args:
        student: modality of the student, which the patients have.
        teacher: modality of the teacher.
        classes: number of classes C, background included.
        network: "unet", "fc_densenet" or "mrrn", for both.
        width: channels of their first scale; None for the paper's.
        norm: "batch", "instance" or "group".
        dropout: None for the network's own.
        dims: 2 or 3.
        loss: "both", "dice" or "cross_entropy".
        hints_at: site of the maps, see `networks.hinted`.
        hint_reduction: "mean", "positions" or "sum", see `losses.distillation.hint_loss`.
        hint_weight: lambda_hint.
        output_weight: of the distillation of outputs; 0 leaves it out.
        temperature: of the latter.
        detach_teacher: only the student learns from hints and outputs, not the teacher.
        teacher_labels: the teacher learns from images and labels of its own modality.
        teacher_sees_translations: L_seg^pM is there, in both turns.
        augment_student: the student learns from images of the teacher's modality translated back, too.
        segmentation_weight: lambda_seg.
        read_out: who is deployed: the "student", the "teacher" together with the translator, or the "translator".
        translator: "cyclegan" or "drit".
        translation: arguments of that method, but for modalities and dims.
        lr: learning rate of the segmentors.
        betas: of their Adam.
    """

    def __init__(
        self,
        student: str = "ct",
        teacher: str = "mr",
        classes: int = 2,
        *,
        network: SegmentorName = "unet",
        width: int | None = None,
        norm: NormKind = "batch",
        dropout: float | None = None,
        dims: int = 2,
        loss: SegmentationLoss = "both",
        hints_at: str = "high",
        hint_reduction: Literal["mean", "positions", "sum"] = "mean",
        hint_weight: float = 1.0,
        output_weight: float = 0.0,
        temperature: float = 0.5,
        detach_teacher: bool = False,
        teacher_labels: bool = True,
        teacher_sees_translations: bool = True,
        augment_student: bool = False,
        segmentation_weight: float = 5.0,
        read_out: Literal["student", "teacher", "translator"] = "student",
        translator: str = "cyclegan",
        translation: Mapping[str, Any] | None = None,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__()
        if not (teacher_labels or teacher_sees_translations):
            raise ValueError("a teacher needs teacher_labels or teacher_sees_translations, or it learns nothing")
        self.dims = dims
        self.translation = build_translation(translator, student, teacher, dims, translation)
        segmentor = partial(build_segmentor, network, 1, classes, width=width, norm=norm, dropout=dropout, dims=dims)
        self.segmentors = Segmentors(segmentor(), segmentor())
        self.halvings = self.segmentors.student.halvings
        self.segmentors.student.hint_channels(hints_at)  # refuses a site that is not there
        self.translation.watch(self.segmentors.teacher)
        self.hints_at, self.hint = hints_at, partial(hint_loss, reduction=hint_reduction)
        self.hint_weight, self.output_weight, self.temperature = hint_weight, output_weight, temperature
        self.detach_teacher, self.teacher_labels, self.augment_student = detach_teacher, teacher_labels, augment_student
        self.teacher_sees_translations = teacher_sees_translations
        self.segmentation_weight, self.loss = segmentation_weight, loss
        self.reads: dict[str, tuple[str, ...]] = {"segmentors.student": (student,), "segmentors.teacher": (teacher,)}
        self.deployed = "segmentors.student"
        if read_out == "translator":
            self.deployed, self.targets = f"translation.{self.translation.deployed}", (teacher,)
            self.reads[self.deployed] = (student,)
        if read_out == "teacher":
            self.reader = TranslatingSegmentor(
                self.translation.get_submodule(self.translation.deployed), self.segmentors.teacher
            )
            self.reads["reader"], self.deployed = (student,), "reader"
        self.domains = ((student,), (teacher,))
        self.players = {
            **nested("translation", self.translation.players),
            "segmentors": partial(Adam, lr=lr, betas=betas, fused=True),
        }

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """The turns of translators, critics and segmentors."""
        own, other = (batch.having(domain) for domain in self.domains)
        x_s, x_t = signed(own.images), signed(other.images)
        student, teacher = self.segmentors.student, self.segmentors.teacher

        def guidance(translated: Tensor) -> Terms:
            """What the translators learn from the segmentors, which stay as they are."""
            with frozen_statistics(self.segmentors), without_dropout(self.segmentors):
                z_t, phi_t = teacher.with_hints(translated, self.hints_at)
                _, phi_s = student.with_hints(x_s, self.hints_at)
            terms = {"hint": self.hint_weight * self.hint(phi_s, phi_t)} if self.hint_weight else {}
            if self.teacher_sees_translations:
                terms["segmentation"] = self._segmentation(z_t, own.labels)
            return terms

        for player, terms in self.translation.losses(batch, guidance):
            yield f"translation.{player}", terms

        with torch.no_grad():
            translated = self.translation.to_target(x_s, x_t)
        z_s, phi_s = student.with_hints(x_s, self.hints_at)
        z_t, phi_t = teacher.with_hints(translated, self.hints_at)
        learnt = {"student": self._segmentation(z_s, own.labels)}
        if self.teacher_sees_translations:
            learnt["teacher_translated"] = self._segmentation(z_t, own.labels)
        if self.teacher_labels:
            learnt["teacher"] = self._segmentation(teacher(x_t), other.labels)
        if self.augment_student:
            with torch.no_grad():
                back = self.translation.to_source(x_t, x_s)
            learnt["student_augmented"] = self._segmentation(student(back), other.labels)
        shown = (z_t.detach(), [x.detach() for x in phi_t]) if self.detach_teacher else (z_t, phi_t)
        if self.hint_weight:
            learnt["hint"] = self.hint_weight * self.hint(phi_s, shown[1])
        if self.output_weight:
            learnt["outputs"] = self.output_weight * output_distillation(z_s, shown[0], self.temperature)
        watched = {"rms_student": _rms(phi_s), "rms_teacher": _rms(phi_t)}
        watched |= {
            f"scale_{name}": scale
            for name, network in (("student", student), ("teacher", teacher))
            for scale in _scale(network)
        }
        yield "segmentors", {**learnt, **watched}
        self.translation.watch(teacher)

    def segment(self, images: Tensor) -> Tensor:
        """The logits (B, C, *spatial) of the student or, if it is read out, of the teacher for the translation."""
        logits: Tensor = (self.reader if self.deployed == "reader" else self.segmentors.student)(signed(images))
        return logits

    def record(self) -> dict[str, Any]:
        """See `Method`: that of the translation."""
        return self.translation.record()

    @classmethod
    def for_inference(cls, **arguments: Any) -> Method:
        """What is read out, alone: with the student no teacher, translator, critic or extractor is built."""
        shared = ["classes", "network", "width", "norm", "dropout", "dims"]
        student = arguments.get("student", "ct")
        teacher, read_out = arguments.get("teacher", "mr"), arguments.get("read_out", "student")
        if read_out == "teacher":
            kept = {name: arguments[name] for name in [*shared, "translator", "translation"] if name in arguments}
            return Fusion.for_inference(source=student, target=teacher, sees="translation", **kept)
        if read_out == "translator":
            translator = load_method(arguments.get("translator", "cyclegan"))
            how = arguments.get("translation") or {}
            return translator.for_inference(source=student, target=teacher, dims=arguments.get("dims", 2), **how)
        return Segmentor((student,), **{name: arguments[name] for name in shared if name in arguments})

    def _segmentation(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.segmentation_weight * segmentation_loss(logits, labels, self.loss)


def _rms(maps: Sequence[Tensor]) -> Tensor:
    """Root mean square of all elements: whether hints agree because both networks have shrunk their maps."""
    with torch.no_grad():
        squares = torch.stack([x.float().square().sum() for x in maps]).sum()
        return (squares / sum(x.numel() for x in maps)).sqrt()


def _scale(network: nn.Module) -> list[Tensor]:
    """Mean |gamma| of the last norm that has any: hints agree, too, where these shrink and the last layer makes up for it."""
    gammas = [norm.weight for norm in network.modules() if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d | nn.GroupNorm)]
    return [gammas[-1].detach().float().abs().mean()] if gammas else []
