"""CycleGAN, with the contextual loss by which CMEDL keeps a pseudo MR close to real ones.

Zhu, Park, Isola, Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", ICCV 2017
(https://arxiv.org/abs/1703.10593), as in Jiang et al., "Unpaired Cross-Modality Educed Distillation (CMEDL)", IEEE TMI 2022
(https://arxiv.org/abs/2107.07985). Two translators, F from the source (CT) to the target (MR) and G back, learn from images of
different patients: no critic may tell what they make from real images, and what went there and back must be what it was.

Terms, with c and m the images of the two domains in [-1, 1], D_M and D_C the critics and phi the maps of an extractor that
never learns
    generators/adversarial_target   L_adv^M = mean (D_M(F(c)) - 1)^2                        Eq. (5), as least squares
    generators/adversarial_source   L_adv^C = mean (D_C(G(m)) - 1)^2
    generators/cycle                L_cyc = cycle_weight (mean |G(F(c)) - c| + mean |F(G(m)) - m|)
    generators/contextual           L_cx = contextual_weight sum_layers -log CX(phi(F(c)), phi(m))   Eq. (2) and (3)
    generators/identity             L_id = identity_weight (mean |F(m) - m| + mean |G(c) - c|)
    critics/target                  L_M = (mean (D_M(m) - 1)^2 + mean D_M(F(c))^2) / 2
    critics/source                  L_C = (mean (D_C(c) - 1)^2 + mean D_C(G(m))^2) / 2

A term whose weight is 0 is left out. What a critic sees of the translators comes from a history of 50 images.

Differs from the papers
    1. CMEDL prints the logarithmic form of the adversarial loss; least squares are CycleGAN's and those of the group's code.
       `adversarial="log"` is the other reading.
    2. The contextual loss needs features. The paper's are those of VGG19 trained on ImageNet, which come as the user's file
       (`extractor="vgg19"`, `vgg19_weights`); without one, intensities and gradients stand in (`"gradient"`), random
       convolutions (`"random"`), or maps of CMEDL's teacher (`"teacher"`). A result without VGG19 is not the paper's.
    3. CMEDL lists no identity loss, CycleGAN's code weighs it with 5: 0 here.
    4. Learning rates stay constant; CycleGAN's fall to 0 in the second half.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.optim import Adam

from modistill.data.batch import Batch
from modistill.errors import ModelError
from modistill.losses.adversarial import LeastSquares, LogLikelihood, least_squares, log_likelihood
from modistill.losses.contextual import contextual_loss
from modistill.losses.translation import cycle_loss, identity_loss
from modistill.methods.base import Guidance, Method, Turn, UnpairedTranslation, signed
from modistill.networks.extractors import EncoderFeatures, FeatureExtractor, GradientFeatures, RandomFeatures, VGG19Features
from modistill.networks.hinted import HintedNetwork
from modistill.networks.history import ImageHistory
from modistill.networks.patch_critic import PatchCritic
from modistill.networks.resnet_translator import ResnetTranslator

__all__ = ["CycleGAN"]

_ADVERSARIAL: Mapping[str, LeastSquares | LogLikelihood] = {"least_squares": least_squares, "log": log_likelihood}


class CycleGAN(UnpairedTranslation):
    """Two translators and two critics.

    Args:
        source: modality that is translated, which the patients have.
        target: modality it is translated into.
        width: channels of the translators' and the critics' first layer.
        blocks: residual blocks of a translator.
        dropout: inside them.
        dims: 2 or 3.
        cycle_weight: lambda_cyc.
        contextual_weight: lambda_cx; 0 for CycleGAN by itself.
        identity_weight: of the identity loss.
        adversarial: "least_squares" or "log".
        extractor: "gradient", "random", "vgg19" or, inside CMEDL, "teacher": a moving average of the teacher's first maps.
        vgg19_weights: file of the latter.
        bandwidth: h of the contextual loss.
        direction: "mechrez" or "cmedl", see `losses.contextual`.
        max_positions: of a map that the contextual loss compares; None for all.
        history: images that the critics are shown again.
        lr: learning rate of Adam.
        betas: of Adam.

    Raises:
        ValueError: `extractor="vgg19"` without a file.
        ModelError: a file that holds other weights.
    """

    deployed = "generators.to_target"

    def __init__(
        self,
        source: str = "ct",
        target: str = "mr",
        *,
        width: int = 64,
        blocks: int = 9,
        dropout: float = 0.0,
        dims: int = 2,
        cycle_weight: float = 10.0,
        contextual_weight: float = 1.0,
        identity_weight: float = 0.0,
        adversarial: Literal["least_squares", "log"] = "least_squares",
        extractor: Literal["gradient", "random", "vgg19", "teacher"] = "gradient",
        vgg19_weights: str | None = None,
        bandwidth: float = 0.5,
        direction: Literal["mechrez", "cmedl"] = "mechrez",
        max_positions: int | None = 1024,
        history: int = 50,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__()
        self.dims, self.source, self.target = dims, source, target
        translator = partial(ResnetTranslator, width=width, blocks=blocks, dropout=dropout, dims=dims)
        self.generators = nn.ModuleDict({"to_target": translator(), "to_source": translator()})
        critic = partial(PatchCritic, width=width, dims=dims)
        self.critics = nn.ModuleDict({"target": critic(), "source": critic()})
        self.histories = nn.ModuleDict({"target": ImageHistory(history), "source": ImageHistory(history)})
        self.needs_teacher = bool(contextual_weight) and extractor == "teacher"
        alone = contextual_weight and not self.needs_teacher
        self.extractor: FeatureExtractor | None = _extractor(extractor, vgg19_weights, dims) if alone else None
        self.contextual = partial(contextual_loss, bandwidth=bandwidth, direction=direction, max_positions=max_positions)
        self.cycle_weight, self.contextual_weight, self.identity_weight = cycle_weight, contextual_weight, identity_weight
        if adversarial not in _ADVERSARIAL:
            raise ValueError(f"no adversarial loss {adversarial!r}: {', '.join(_ADVERSARIAL)}")
        self.adversarial = _ADVERSARIAL[adversarial]
        self.reads = {"generators.to_target": (source,), "generators.to_source": (target,)}
        self.domains, self.targets = ((source,), (target,)), (target,)
        adam = partial(Adam, lr=lr, betas=betas, fused=True)
        self.players = {"generators": adam, "critics": adam}

    def losses(self, batch: Batch, guidance: Guidance | None = None) -> Generator[Turn]:
        """The turns of generators and critics; `guidance` adds terms to that of the generators."""
        c, m = (signed(batch.having(domain).images) for domain in self.domains)
        to_target, to_source = self.to_target, self.to_source

        fake_m, fake_c = to_target(c), to_source(m)
        terms: dict[str, Tensor] = {
            "adversarial_target": self.adversarial.real(self.critics["target"](fake_m)),
            "adversarial_source": self.adversarial.real(self.critics["source"](fake_c)),
        }
        if self.cycle_weight:
            terms["cycle"] = self.cycle_weight * (cycle_loss(to_source(fake_m), c) + cycle_loss(to_target(fake_c), m))
        if self.contextual_weight:
            if self.extractor is None:
                raise ModelError("there is no teacher whose features could be compared", remedy="extractor: gradient, or CMEDL")
            terms["contextual"] = self.contextual_weight * self.contextual(self.extractor(fake_m), self.extractor(m))
        if self.identity_weight:
            terms["identity"] = self.identity_weight * (identity_loss(to_target(m), m) + identity_loss(to_source(c), c))
        yield "generators", {**terms, **(guidance(fake_m) if guidance else {})}

        shown_m, shown_c = self.histories["target"](fake_m), self.histories["source"](fake_c)
        yield "critics", {"target": self._judged("target", m, shown_m), "source": self._judged("source", c, shown_c)}

    def to_target(self, source: Tensor, target: Tensor | None = None) -> Tensor:
        """F of images (B, 1, *spatial) in [-1, 1]; it has one style, whatever `target`."""
        made: Tensor = self.generators["to_target"](source)
        return made

    def to_source(self, target: Tensor, source: Tensor | None = None) -> Tensor:
        """G of images (B, 1, *spatial) in [-1, 1]."""
        made: Tensor = self.generators["to_source"](target)
        return made

    def watch(self, teacher: nn.Module) -> None:
        """See `UnpairedTranslation`: the average follows the teacher, if images are compared by its maps."""
        if self.needs_teacher and self.extractor is None:
            self.extractor = EncoderFeatures(teacher, _early_maps, layers=("low", "mid"))
        elif isinstance(self.extractor, EncoderFeatures):
            self.extractor.update(teacher)

    def record(self) -> dict[str, Any]:
        """See `Method`: by which features images were compared."""
        return {} if self.extractor is None else {"extractor": self.extractor.record()}

    @classmethod
    def for_inference(cls, **arguments: Any) -> Method:
        """Without an extractor, whose weights may lie elsewhere."""
        return cls(**{**arguments, "contextual_weight": 0.0})

    def _judged(self, domain: str, real: Tensor, fake: Tensor) -> Tensor:
        critic = self.critics[domain]
        return (self.adversarial.real(critic(real)) + self.adversarial.fake(critic(fake))) / 2


def _early_maps(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The first and the lowest maps of a segmentor, of each site the last."""
    return [cast(HintedNetwork, network).with_hints(images, site)[1][-1] for site in ("low", "mid")]


def _extractor(kind: str, weights: str | None, dims: int) -> FeatureExtractor:
    if kind == "vgg19":
        if weights is None:
            raise ValueError('extractor "vgg19" needs vgg19_weights, the state dict of torchvision\'s vgg19')
        return VGG19Features(weights)
    made: Mapping[str, Callable[..., FeatureExtractor]] = {"gradient": GradientFeatures, "random": RandomFeatures}
    if kind not in made:
        raise ValueError(f"no extractor {kind!r}: gradient, random, vgg19")
    return made[kind](dims=dims)
