"""DRIT, the variational translator of VAE-CMEDL: an image is a content, which domains share, in a style of its own domain.

Lee et al., "Diverse Image-to-Image Translation via Disentangled Representations", ECCV 2018 (https://arxiv.org/abs/1808.00948),
and DRIT++, IJCV 2020 (https://arxiv.org/abs/1905.01270), as the translation of Jiang et al., "Unpaired Cross-Modality Educed
Distillation (CMEDL)", IEEE TMI 2022 (https://arxiv.org/abs/2107.07985). A CT becomes an MR when its content is shown in the
style of MR images. That a content is of no domain is what a critic of contents sees to.

Terms, with c and m the images of the two domains in [-1, 1], z_c = E(c) + N(0, 1) their contents, N(mu, v) = E_s(c) the styles
and s_c a draw from them, F(z, s) and G(z, s) the generator of the target and of the source, D the critics, and r, r' two codes
from N(0, 1); sums are over both directions
    content_critic/content         L_Dc = CE(D_c(z_c), 0) + CE(D_c(z_m), 1)
    critics/source                 = CE(D_C(c), 1) + CE(D_C(G(z_m, s_c)), 0)
    critics/target                 = CE(D_M(m), 1) + CE(D_M(F(z_c, s_m)), 0)
    critics/source_random          = CE(D'_C(c), 1) + CE(D'_C(G(z_m, r)), 0)
    critics/target_random          = CE(D'_M(m), 1) + CE(D'_M(F(z_c, r)), 0)
    generators/adversarial         L_adv = CE(D_C(G(z_m, s_c)), 1) + CE(D_M(F(z_c, s_m)), 1)
    generators/content             L_c = content_weight (CE(D_c(z_c), 1/2) + CE(D_c(z_m), 1/2))
    generators/reconstruction      = reconstruction_weight (mean |G(z_c, s_c) - c| + mean |F(z_m, s_m) - m|)
    generators/cross_cycle         L_cc = cross_cycle_weight (mean |G(z'_c, s'_c) - c| + ...), z'_c of F(z_c, s_m), s'_c of
                                   G(z_m, s_c)
    generators/divergence          L_KL = divergence_weight (KL(E_s(c) || N(0, 1)) + ...)
    generators/content_size        = content_size_weight (mean z_c^2 + mean z_m^2)
    generators/content_codes       = content_codes_weight (mean |E(F(z_c, s_m)) - E(c)| + ...)
    generators/adversarial_random  = CE(D'_C(G(z_m, r)), 1) + CE(D'_M(F(z_c, r)), 1)
    generators/latent              L_lr = latent_weight (mean |mu(E_s(G(z_m, r))) - r| + ...)
    generators/mode_seeking        = mode_seeking_weight (mean |r - r'| / mean |G(z_m, r) - G(z_m, r')| + ...)

Content codes and mode seeking are left out where their weight is 0. The last three are a turn of their own, in which the style
encoder does not learn. The first half of a batch is translated, the second is real for the critics of random styles (D'), one
image alone serves both. A translation for use, and for a segmentor, is F(E(c), mu): without noise, in the mean style of the
images of the other domain in the batch or, at test time, in a running average of these.

Differs from the published code
    1. It computes both generator turns from one pass and steps between their backward passes, which PyTorch refuses since 1.5;
       here the second turn begins with a pass by the stepped networks.
    2. It shows the critic of contents two more batches for each of the others' steps; here it is shown the same batch with
       other noise, `content_updates` times in all.
    3. Learning rates stay constant; theirs fall in the second half of 1,200 epochs.
Differs from the text of CMEDL
    4. See `losses.drit`: its equations are not DRIT's. Its weight of the divergence is 1, DRIT's 0.01. `content_codes_weight`
       adds the difference of contents that it prints.
    5. It does not say with which style its translations are made; see above.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Adam

from modistill.data.batch import Batch
from modistill.errors import ModelError
from modistill.losses.drit import binary_cross_entropy, content_size, latent_regression, mode_seeking, style_divergence
from modistill.losses.gaussian import Gaussian
from modistill.losses.translation import cycle_loss
from modistill.methods.base import Guidance, Turn, UnpairedTranslation, bounded, signed
from modistill.networks.blocks import frozen_parameters
from modistill.networks.drit import StyleEncoder, StyleTranslator
from modistill.networks.drit_critics import ContentCritic, MultiScaleCritic

__all__ = ["DRIT"]

_DOMAINS = ("source", "target")
_DIRECTIONS = (("source", "target"), ("target", "source"))
_RANDOM = "_random"


class DRIT(UnpairedTranslation):
    """Content and style encoders, a generator for both domains, two critics for each, and one of contents.

    Args:
        source: modality that is translated, which the patients have.
        target: modality it is translated into.
        width: channels of the first layers.
        blocks: residual blocks of content encoder and generator.
        code: length of the style code.
        critic_scales: of the critics; with 3 an image needs 61 voxels an axis.
        content_layers: of stride 2 in the critic of contents; with 3 an image needs 209 voxels an axis, with 1 it needs 41.
        dims: 2 or 3.
        reconstruction_weight: of an image made of its own content and style.
        cross_cycle_weight: lambda_cc.
        latent_weight: lambda_lr.
        content_weight: lambda_c.
        divergence_weight: of the styles' divergence.
        content_size_weight: of the mean square of contents.
        content_codes_weight: of the difference of contents between an image and its translation.
        mode_seeking_weight: of the mode seeking.
        content_updates: steps of the critic of contents for one of the others.
        lr: learning rate of Adam.
        content_lr: that of the critic of contents, whose gradients are bounded by a norm of 5.
        betas: of Adam.
        weight_decay: of Adam.
    """

    deployed = "generators.translator"

    def __init__(
        self,
        source: str = "ct",
        target: str = "mr",
        *,
        width: int = 64,
        blocks: int = 4,
        code: int = 8,
        critic_scales: int = 3,
        content_layers: int = 3,
        dims: int = 2,
        reconstruction_weight: float = 10.0,
        cross_cycle_weight: float = 10.0,
        latent_weight: float = 10.0,
        content_weight: float = 1.0,
        divergence_weight: float = 0.01,
        content_size_weight: float = 0.01,
        content_codes_weight: float = 0.0,
        mode_seeking_weight: float = 1.0,
        content_updates: int = 3,
        lr: float = 1e-4,
        content_lr: float = 4e-5,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        self.smallest = max((15 * 2 ** (critic_scales - 1)) + 1, 4 * (7 * 2**content_layers - 3) - 3)
        self.dims, self.source, self.target, self.code = dims, source, target, code
        self.generators = nn.ModuleDict(
            {
                "translator": StyleTranslator(*_DOMAINS, width=width, blocks=blocks, code=code, dims=dims),
                "style": StyleEncoder(_DOMAINS, width=width, code=code, dims=dims),
            }
        )
        critic = partial(MultiScaleCritic, width=width, scales=critic_scales, dims=dims)
        self.critics = nn.ModuleDict({name + kind: critic() for name in _DOMAINS for kind in ("", _RANDOM)})
        self.content_critic = ContentCritic(4 * width, layers=content_layers, dims=dims)
        self.reconstruction_weight, self.cross_cycle_weight = reconstruction_weight, cross_cycle_weight
        self.latent_weight, self.content_weight, self.content_updates = latent_weight, content_weight, content_updates
        self.divergence_weight, self.content_size_weight = divergence_weight, content_size_weight
        self.content_codes_weight, self.mode_seeking_weight = content_codes_weight, mode_seeking_weight
        self.reads = {"generators.translator": (source,)}
        self.domains, self.targets = ((source,), (target,)), (target,)
        adam = partial(Adam, betas=betas, weight_decay=weight_decay, fused=True)
        self.players = {
            "generators": partial(adam, lr=lr),
            "critics": partial(adam, lr=lr),
            "content_critic": bounded(partial(adam, lr=content_lr), norm=5.0),
        }

    def losses(self, batch: Batch, guidance: Guidance | None = None) -> Generator[Turn]:
        """The turns of the critics and, twice, of the generators; `guidance` adds terms to the first of these."""
        encode, generate, style = *self._translator, self.generators["style"]
        images = {name: signed(batch.having(domain).images) for name, domain in zip(_DOMAINS, self.domains, strict=True)}
        half, size = (min(map(len, images.values())) + 1) // 2, batch.images.shape[2:]
        real = {name: x[:half] for name, x in images.items()}

        if min(size) < self.smallest:
            raise ModelError(
                f"patches of {'x'.join(map(str, size))} voxels, the critics need {self.smallest} along every axis",
                remedy="larger sampling.patch_size, fewer content_layers or critic_scales",
            )
        clean = {name: encode(x, name) for name, x in real.items()}
        for _ in range(self.content_updates):
            c, m = (_with_noise(clean[name].detach()) for name in _DOMAINS)
            yield "content_critic", {"content": self._is_of(c, 0.0) + self._is_of(m, 1.0)}

        content = {name: _with_noise(x) for name, x in clean.items()}
        styles = {name: style(x, name) for name, x in real.items()}
        codes = [torch.randn_like(styles["source"].mean) for _ in range(2 if self.mode_seeking_weight else 1)]
        same, crossed, free = {}, {}, {}  # made of the own content, of the other's, of the other's in random styles
        for name, other in _DIRECTIONS:
            contents = torch.cat([content[name], *[content[other]] * (1 + len(codes))])
            drawn = _draw(styles[name])
            same[name], crossed[name], *made = generate(contents, torch.cat([drawn, drawn, *codes]), name, size).split(half)
            free[name] = torch.cat(made)
        with torch.no_grad():
            average = self.generators["translator"].get_buffer("mean_style")
            average.lerp_(styles["target"].mean.mean(0, keepdim=True).to(average.dtype), 0.01)
        judged = {name: self._judged(name, real[name], crossed[name]) for name in _DOMAINS}
        judged |= {name + _RANDOM: self._judged(name + _RANDOM, images[name][-half:], free[name]) for name in _DOMAINS}
        yield "critics", judged

        met = {
            other: encode(crossed[name], name) for name, other in _DIRECTIONS
        }  # the contents again, as the translations show them
        back = {name: generate(_with_noise(met[name]), _draw(style(crossed[name], name)), name, size) for name in _DOMAINS}
        terms = {
            "adversarial": _both(lambda name: self._looks_real(name, crossed[name])),
            "content": self.content_weight * _both(lambda name: self._is_of(content[name], 0.5)),
            "reconstruction": self.reconstruction_weight * _both(lambda name: cycle_loss(same[name], real[name])),
            "cross_cycle": self.cross_cycle_weight * _both(lambda name: cycle_loss(back[name], real[name])),
            "divergence": self.divergence_weight * _both(lambda name: style_divergence(styles[name])),
            "content_size": self.content_size_weight * _both(lambda name: content_size(content[name])),
        }
        if self.content_codes_weight:
            terms["content_codes"] = self.content_codes_weight * _both(lambda name: cycle_loss(met[name], clean[name]))
        yield "generators", {**terms, **(guidance(self.to_target(*images.values())) if guidance else {})}

        content = {name: _with_noise(encode(x, name)) for name, x in real.items()}
        made = {
            name: generate(torch.cat([content[other]] * len(codes)), torch.cat(codes), name, size)
            for name, other in _DIRECTIONS
        }
        with frozen_parameters(style):
            seen = {name: style(x[:half], name) for name, x in made.items()}
        terms = {
            "adversarial_random": _both(lambda name: self._looks_real(name + _RANDOM, made[name])),
            "latent": self.latent_weight * _both(lambda name: latent_regression(seen[name], codes[0])),
        }
        if self.mode_seeking_weight:
            pairs = {name: (x[:half], x[half:]) for name, x in made.items()}
            terms["mode_seeking"] = self.mode_seeking_weight * _both(
                lambda name: mode_seeking(pairs[name], (codes[0], codes[1]))
            )
        yield "generators", terms

    def to_target(self, source: Tensor, target: Tensor | None = None) -> Tensor:
        """F of images (B, 1, *spatial) in [-1, 1], in the style of `target`, else in the mean style of training."""
        return self._translated(source, "source", target, "target", self.generators["translator"].get_buffer("mean_style"))

    def to_source(self, target: Tensor, source: Tensor | None = None) -> Tensor:
        """G of images (B, 1, *spatial) in [-1, 1], in the style of `source`, else in that of zeros."""
        return self._translated(target, "target", source, "source", target.new_zeros(1, self.code))

    @property
    def _translator(self) -> tuple[nn.Module, nn.Module]:
        """Encoder of contents and generator."""
        translator = self.generators["translator"]
        return translator.get_submodule("content"), translator.get_submodule("generator")

    def _translated(self, images: Tensor, domain: str, others: Tensor | None, wanted: str, style: Tensor) -> Tensor:
        encode, generate = self._translator
        style = style if others is None else self.generators["style"](others, wanted).mean
        made: Tensor = generate(encode(images, domain), style, wanted, images.shape[2:])
        return made

    def _is_of(self, content: Tensor, domain: float) -> Tensor:
        """How far the critic of contents is from saying: of the source (0), of the target (1), of neither (1/2)."""
        return binary_cross_entropy(self.content_critic(content), domain)

    def _looks_real(self, critic: str, made: Tensor) -> Tensor:
        return binary_cross_entropy(self.critics[critic](made), 1.0)

    def _judged(self, critic: str, real: Tensor, fake: Tensor) -> Tensor:
        return self._looks_real(critic, real) + binary_cross_entropy(self.critics[critic](fake.detach()), 0.0)


def _both(term: Callable[[str], Tensor]) -> Tensor:
    """A term's sum over both domains."""
    return torch.stack([term(name) for name in _DOMAINS]).sum()


def _with_noise(content: Tensor) -> Tensor:
    return content + torch.randn_like(content)


def _draw(style: Gaussian) -> Tensor:
    return style.sample(style.mean.new_ones(len(style.mean)))
