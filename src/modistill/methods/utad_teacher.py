"""The teacher of UTAD-Net: it translates slices between any two sequences, and is shown where the tumour is.

Huang, Wei, Li, "Unsupervised Tumor-Aware Distillation for Multi-Modal Brain Image Translation", IJCNN 2024
(https://arxiv.org/abs/2403.20168). One generator makes any modality of any other; of each patient of the training it sees one
only. Its second branch reads the tumour alone, which is cut out by a mask, so that the translation keeps it. Two critics judge
whole slices and tumours, and say of which modality they are, as in StarGAN (https://arxiv.org/abs/1711.09020).

Terms, with x a slice of modality m in [-1, 1], M its tumour, t = cut(M, x) the tumour on a slice of -1, k the modality of
another sample of the batch, (x', t') = G(x, t, k) and (x~, t~) = G(x', cut(M, x'), m) the way back, D_g and D_l the critics and
C their logits of modalities
    critics.whole/real              = -mean D_g(x)
    critics.whole/fake              = mean D_g(x')
    critics.whole/modality          = class_weight CE(C_g(x), m)
    critics.whole/penalty           = penalty_weight mean (|grad D_g|_2 - 1)^2, between x and x'
    critics.tumour/real             = , critics.tumour/fake = , critics.tumour/modality = and
    critics.tumour/penalty          = the same of D_l, t and t'
    generator/adversarial           = -mean D_g(x')
    generator/adversarial_tumour    = -mean D_l(t')
    generator/modality              = class_weight CE(C_g(x'), k)
    generator/modality_tumour       = class_weight CE(C_l(t'), k)
    generator/reconstruction        = reconstruction_weight mean |x - x~|
    generator/local_consistency     = local_weight mean |t' - cut(M, x')|
    generator/local_reconstruction  = local_weight mean |t - t~|

The critics learn in every round, the generator in every fifth. Adam's rate is constant for half of the epochs and falls along a
line in the other half.

A translation needs no target of the same patient, and no loss sees one. At test time the tumour is unknown: `translate` shows
the whole slice to both branches unless it is given a mask.

`mode="faithful"` computes as the authors' code does, `mode="fixed"` otherwise where that defeats itself:
    1. The first unit of an encoder has no norm: it would erase the code of the wanted modality (`networks.two_branch`).
    2. The fusion has instance norms: batch norms mix both directions, and differ between teacher (eval mode) and student.
    3. A difference of tumours is the mean over the tumour plus that over the rest of its slice: of all voxels a tumour's are a
       few per cent.
    4. Slices without tumour count neither for D_l, for they are empty and of no modality, nor in 3. With several ranks these
       means are of each rank's own slices, as the statistics of batch norms are.

Differs from the paper
    Its text could be read in parts only; all numbers are those of the authors' code (https://github.com/scut-HC/UTAD-Net).
Differs from the authors' code
    1. Critics and generator take their turns on one translation, and theirs is made anew for each; where the critics alone
       play, and for the frozen teacher, there is no graph. The terms are the same, for less; batch norms count it once.
    2. Rounds are counted through; theirs begin anew in every epoch.
    3. k is of a permutation of the batch, so the wanted modality is often the slice's own (a quarter of them in a batch with
       two of each of four); their student's comes from the loader.
    4. Their loader is not published. The recipe's intensities are percentiles, its slices any that shows brain, a third of them
       chosen to show a tumour, its augmentation that of CMEDL. UAGAN, by the same group (https://github.com/mangoyuan/UAGAN),
       has z-scores in 8 bits, slices with 10 % of brain, flips along both axes, rotations by 20 degrees and zooms by 10 %.
    5. Mask and crop of a training case rest on all of its modalities, at test time on the one that is translated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from modistill.data.batch import Batch
from modistill.hardware import wide
from modistill.losses.adversarial import gradient_penalty, sample_mean, wasserstein
from modistill.losses.translation import cycle_loss
from modistill.losses.tumour import cut, tumour_difference
from modistill.methods.base import Method, Terms, TranslationMethod, Turn, signed
from modistill.networks.blocks import in_the_middle
from modistill.networks.star_critic import StarCritic
from modistill.networks.two_branch import Scheme, Translated, TwoBranchGenerator
from modistill.schedules import LinearDecayAdam

__all__ = ["Slices", "UTADTeacher"]


class Slices:
    """An unpaired batch as the method reads it.

    Attributes:
        x: (B, 1, *spatial) the one modality that each sample shows, in [-1, 1].
        m: (B,) which it is.
        tumour: (B, 1, *spatial) bool.
    """

    def __init__(self, batch: Batch) -> None:
        self.m = batch.presence.int().argmax(1)
        self.x = signed(batch.images[torch.arange(len(self.m)), self.m][:, None])
        self.tumour = batch.labels[:, None] > 0


class UTADTeacher(TranslationMethod):
    """A generator of two branches, and a critic for each.

    Args:
        modalities: any of which becomes any other.
        width: channels of the first layer of generator and critics.
        levels: how often the generator halves a slice.
        side: voxels of a slice along every axis; a recipe that leaves it out gets that of `sampling.patch_size`.
        scheme: of the branches, see `networks.two_branch`; a teacher has both.
        mode: "faithful" or "fixed", see above.
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
        ValueError: fewer than two modalities, a side that cannot be halved so often, or another mode or scheme.
    """

    deployed = "generator"

    def __init__(
        self,
        modalities: tuple[str, ...] = ("flair", "t1", "t1ce", "t2"),
        *,
        width: int = 64,
        levels: int = 4,
        side: int = 128,
        scheme: Scheme = "a",
        mode: Literal["faithful", "fixed"] = "faithful",
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
        super().__init__()
        if len(modalities) < 2:
            raise ValueError(f"translates between {len(modalities)} modalities: two or more are needed")
        if mode not in ("faithful", "fixed"):
            raise ValueError(f"no mode {mode!r}: faithful or fixed")
        if side % 2**levels:
            raise ValueError(f"a side of {side} voxels cannot be halved {levels} times")
        self.dims, self.fixed, self.side, self.multiple = dims, mode == "fixed", side, 2**levels
        self.reads_tumour = scheme in ("a", "d")
        self.architecture: dict[str, Any] = {
            "modalities": len(modalities),
            "width": width,
            "levels": levels,
            "first_norm": not self.fixed,
            "fusion_norm": "instance" if self.fixed else "batch",
            "dims": dims,
        }
        self.generator = TwoBranchGenerator(scheme=scheme, **self.architecture)
        judged = ("whole",) if scheme == "b" else ("whole", "tumour")
        self.critics = nn.ModuleDict({name: StarCritic(len(modalities), width=width, side=side, dims=dims) for name in judged})
        self.halvings, self.critic_rounds = 0, critic_rounds  # slices of any size are brought to one that can be halved
        self.class_weight, self.penalty_weight = class_weight, penalty_weight
        self.reconstruction_weight, self.local_weight = reconstruction_weight, local_weight
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.adam = LinearDecayAdam(epochs, lr=lr, final=final_lr, betas=betas)
        self.reads: Mapping[str, tuple[str, ...]] = {"generator": tuple(modalities)}
        self.targets, self.domains = tuple(modalities), tuple((name,) for name in modalities)
        self.players = {**{f"critics.{name}": self.adam for name in judged}, "generator": self.adam}

    rounds: Tensor

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """The turns of the critics and, in every round of `critic_rounds`, of the generator."""
        self.adam.begin(batch.epoch)
        slices = Slices(batch)
        x, m, tumour = slices.x, slices.m, slices.tumour
        k, t = m[torch.randperm(len(m)).to(m.device)], cut(tumour, x)
        counts = tumour.flatten(1).any(1).float() if self.fixed else None

        self.rounds += 1
        generates = int(self.rounds) % self.critic_rounds == 0
        with torch.set_grad_enabled(generates):
            made = self._made(x, tumour, k)
        yield "critics.whole", self._judged("whole", x, made.whole.detach(), m)
        if "tumour" in self.critics:
            yield "critics.tumour", self._judged("tumour", t, self._tumour(made, tumour).detach(), m, counts)
        if not generates:
            return

        back = self._made(made.whole, tumour, m)
        realism, names = self.critics["whole"](made.whole)
        terms = {
            "adversarial": wasserstein.real(realism),
            "modality": self.class_weight * cross_entropy(wide(names), k),
            "reconstruction": self.reconstruction_weight * cycle_loss(back.whole, x),
        }
        if "tumour" in self.critics:
            t_made = self._tumour(made, tumour)
            realism, names = self.critics["tumour"](t_made)
            difference = partial(tumour_difference, mask=tumour) if self.fixed else cycle_loss
            consistency = difference(t_made, cut(tumour, made.whole))
            reconstruction = difference(self._tumour(back, tumour), t)
            terms |= {
                "adversarial_tumour": wasserstein.real(realism, counts),
                "modality_tumour": self.class_weight * sample_mean(cross_entropy(wide(names), k, reduction="none"), counts),
                "local_consistency": self.local_weight * consistency,
                "local_reconstruction": self.local_weight * reconstruction,
            }
        yield "generator", {**terms, **self.distilled(x, tumour, k, made)}

    def distilled(self, x: Tensor, tumour: Tensor, k: Tensor, made: Translated) -> Terms:
        """What a student adds to the generator's terms; a teacher nothing.

        Args:
            x: (B, 1, *spatial) slices.
            tumour: (B, 1, *spatial) bool.
            k: (B,) modality wanted.
            made: the generator's translation.
        """
        return {}

    def shown(self, x: Tensor, tumour: Tensor) -> Tensor:
        """What the tumour's branch sees of a slice in training."""
        return cut(tumour, x)

    def translate(self, images: Tensor, target: str) -> Tensor:
        """See `TranslationMethod`. With a second channel, the mask of the tumour, the tumour's branch sees the tumour alone."""
        size = [max(n + -n % self.multiple, self.side) for n in images.shape[2:]]  # the norms know slices of this size
        images, back = in_the_middle(images, size, 0.0)
        x = signed(images[:, :1])
        t = x if images.shape[1] == 1 else cut(images[:, 1:] > 0.5, x)
        k = torch.full((len(x),), self.targets.index(target), device=x.device)
        made: Tensor = self.get_submodule(self.deployed)(x, t, k)
        return back((getattr(made, "whole", made) + 1) / 2)

    @classmethod
    def for_inference(cls, **arguments: Any) -> Method:
        """Without critics."""
        method = cls(**arguments)
        del method.critics
        return method

    def _made(self, x: Tensor, tumour: Tensor, k: Tensor) -> Translated:
        made: Translated = self.generator(x, self.shown(x, tumour), k)
        return made

    def _tumour(self, made: Translated, tumour: Tensor) -> Tensor:
        """The tumour as its decoder makes it; where there is none, cut out of the whole slice."""
        return cut(tumour, made.whole) if made.tumour is None else made.tumour

    def _judged(self, name: str, real: Tensor, fake: Tensor, m: Tensor, counts: Tensor | None = None) -> Terms:
        critic = self.critics[name]
        realism, names = critic(real)
        return {
            "real": wasserstein.real(realism, counts),
            "fake": wasserstein.fake(critic(fake)[0], counts),
            "modality": self.class_weight * sample_mean(cross_entropy(wide(names), m, reduction="none"), counts),
            "penalty": self.penalty_weight * gradient_penalty(lambda x: critic(x)[0], real, fake, counts),
        }
