"""What DRIT learns from, beside the mean absolute differences of its reconstructions.

Lee et al., ECCV 2018 (https://arxiv.org/abs/1808.00948), and DRIT++, IJCV 2020 (https://arxiv.org/abs/1905.01270); mode seeking
is that of Mao et al., CVPR 2019 (https://arxiv.org/abs/1903.05628). With E a content encoder, D_c the content critic, D that of
a domain's images, G a generator, (m, v) mean and log-variance of a style, z a code of n numbers from N(0, 1):

==================  ========================================================================  ======================
term                definition                                                                weight, published code
==================  ========================================================================  ======================
domain adversarial  of D: CE(D(x), 1) + CE(D(G), 0); of G: CE(D(G), 1)                        1 for each D
content             of D_c: CE(D_c(E(x_a)), 0) + CE(D_c(E(x_b)), 1);                          1
                    of E: CE(D_c(E(x_a)), 1/2) + CE(D_c(E(x_b)), 1/2)
style divergence    KL(N(m, exp v) || N(0, 1)) = sum_n (m^2 + exp v - v - 1) / 2              0.01
content size        mean E(x)^2                                                               0.01
latent regression   mean_n |m(G(E(x), z)) - z|                                                10
mode seeking        1 / (mean |G(z_1) - G(z_2)| / mean |z_1 - z_2| + 1e-5)                    1
==================  ========================================================================  ======================

CE(x, t) = mean -t log sigma(x) - (1 - t) log(1 - sigma(x)) = `binary_cross_entropy`. Self-reconstruction and cross-cycle, L1
with weight 10, are means over all voxels. Everything is computed in float32 at least.

Differs from the text of CMEDL (https://arxiv.org/abs/2107.07985), which takes DRIT over unchanged but prints other equations
    1. In its content loss log D stands where log(1 - D) must; the weight of the cross-cycle is on a difference of contents; and
       the reconstruction has the other domain's style. The definitions here are DRIT's.
    2. Its divergence has a weight of 1, and there is neither content size nor mode seeking.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from modistill.errors import ModelError
from modistill.hardware import wide
from modistill.losses.gaussian import Gaussian

__all__ = ["binary_cross_entropy", "content_size", "latent_regression", "mode_seeking", "style_divergence"]


def binary_cross_entropy(logits: Tensor | Sequence[Tensor], target: float) -> Tensor:
    """Cross-entropy of a critic's patches to one target, the mean over patches and cases; summed over the scales of a critic.

    Args:
        logits: of any shape, or one such map for every scale.
        target: in [0, 1]. Of an image critic, 1 is real and 0 fake; of the content critic, 0 is the first domain, 1 the second,
            and 1/2 what the encoders aim at: that it cannot tell. The least for 1/2 is log 2, at a logit of 0.

    Example:
        >>> x = torch.tensor([3.0]).log()  # a probability of 3/4
        >>> [round(binary_cross_entropy(x, target).exp().item(), 4) for target in (1, 0)]
        [1.3333, 4.0]
    """
    maps = [wide(x) for x in ((logits,) if isinstance(logits, Tensor) else logits)]
    return torch.stack([functional.binary_cross_entropy_with_logits(x, torch.full_like(x, target)) for x in maps]).sum()


def style_divergence(style: Gaussian) -> Tensor:
    """KL(style || N(0, 1)) in nats, summed over the code, mean over the batch.

    Args:
        style: mean and log-variance (B, code).

    Example:
        >>> style_divergence(Gaussian(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2))).item()
        2.0
    """
    mean, logvar = wide(style.mean), wide(style.logvar)
    return (mean.square() + logvar.exp() - logvar - 1).sum(1).mean() / 2


def content_size(content: Tensor) -> Tensor:
    """Mean square of a content of any shape: what holds it against the noise that is added to it."""
    return wide(content).square().mean()


def latent_regression(style: Gaussian, code: Tensor) -> Tensor:
    """Mean absolute difference of the style found in an image, its mean, from the code that the image was made with.

    Args:
        style: of the image; mean (B, code).
        code: (B, code).

    Raises:
        ModelError: the shapes differ.
    """
    return _difference(style.mean, code)


def mode_seeking(images: tuple[Tensor, Tensor], codes: tuple[Tensor, Tensor]) -> Tensor:
    """How little two translations of one content differ, for how much their codes do.

    The means are over the whole batch, so this is not the mean of its cases' values.

    Args:
        images: two translations (B, C, *spatial) of the same contents.
        codes: (B, code), the different ones they were made with.

    Raises:
        ModelError: the shapes differ.

    Example:
        >>> images, codes = (torch.zeros(1, 1, 2), torch.ones(1, 1, 2)), (torch.zeros(1, 2), torch.full((1, 2), 2.0))
        >>> round(mode_seeking(images, codes).item(), 3)  # 1 / (1 / 2)
        2.0
    """
    return 1 / (_difference(*images) / _difference(*codes) + 1e-5)


def _difference(one: Tensor, two: Tensor) -> Tensor:
    """Mean |one - two|."""
    if one.shape != two.shape:
        raise ModelError(
            f"{tuple(one.shape)} cannot be compared with {tuple(two.shape)}",
            remedy="give pairs of one shape, a code for every image",
        )
    return functional.l1_loss(wide(one), wide(two))
