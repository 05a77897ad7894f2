"""Losses of a critic and of whom it judges.

Least squares: Mao et al., Least Squares Generative Adversarial Networks (ICCV 2017), with targets 1 (real) and 0 (fake), no
factor one half, no label smoothing: as in HAD-Net's equations 1 and 2.

Log-likelihood: Goodfellow et al., Generative Adversarial Nets (NIPS 2014, https://arxiv.org/abs/1406.2661), the form in which
CMEDL's equation 5 is printed.

Wasserstein: Arjovsky et al. (ICML 2017, https://arxiv.org/abs/1701.07875), with the gradient penalty of Gulrajani et al.
(NIPS 2017, https://arxiv.org/abs/1704.00028).

All are objects with the same two halves, one instead of the other. A critic minimises `real` of real samples and `fake` of fake
ones; who makes the fakes minimises `real` of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from modistill.hardware import wide

__all__ = [
    "LeastSquares",
    "LogLikelihood",
    "Wasserstein",
    "accuracy",
    "gradient_penalty",
    "least_squares",
    "log_likelihood",
    "sample_mean",
    "wasserstein",
]


class LeastSquares:
    """The two halves of the least-squares loss; `x` are a critic's outputs, of any shape. Computed in float32 at least.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.5, 1.0])
        >>> least_squares.real(x).item(), least_squares.fake(x).item()
        (0.125, 0.625)
    """

    def real(self, x: Tensor) -> Tensor:
        """Mean (x - 1)^2: small where the critic takes `x` for real."""
        return (wide(x) - 1).square().mean()

    def fake(self, x: Tensor) -> Tensor:
        """Mean x^2: small where the critic takes `x` for fake."""
        return wide(x).square().mean()


least_squares = LeastSquares()


class LogLikelihood:
    """The two halves of the negative log-likelihood of being real, D = sigmoid(x). Computed in float32 at least.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.0])
        >>> round(log_likelihood.real(x).item(), 4), round(log_likelihood.fake(x).item(), 4)  # ln 2
        (0.6931, 0.6931)
    """

    def real(self, x: Tensor) -> Tensor:
        """Mean -log D: small where the critic takes `x` for real."""
        return softplus(-wide(x)).mean()

    def fake(self, x: Tensor) -> Tensor:
        """Mean -log(1 - D): small where the critic takes `x` for fake."""
        return softplus(wide(x)).mean()


log_likelihood = LogLikelihood()


class Wasserstein:
    """The two halves of the critic's side of Wasserstein's distance, whose outputs have no bounds. In float32 at least.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> wasserstein.real(x).item(), wasserstein.fake(x).item(), wasserstein.real(x, torch.tensor([0.0, 1.0])).item()
        (-2.0, 2.0, -3.0)
    """

    def real(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """Mean -x of the samples that count, see `sample_mean`: small where the critic takes `x` for real."""
        return -sample_mean(x, counts)

    def fake(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """Mean x of the samples that count: small where the critic takes `x` for fake."""
        return sample_mean(x, counts)


wasserstein = Wasserstein()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean (|grad_x sum critic(x)|_2 - 1)^2 at a random x between each real sample and its fake one.

    It is computed in float32, also under autocast.

    Args:
        critic: from (B, ...) to outputs of any shape, whose sum over a sample is differentiated.
        real: (B, C, *spatial).
        fake: the same shape; no gradient goes back to it.
        counts: (B,) weight of each sample; None for equal ones.

    Example:
        >>> gradient_penalty(lambda x: x.flatten(1).sum(1) / 2, torch.rand(3, 1, 4), torch.rand(3, 1, 4)).item()  # |grad| = 1
        0.0
    """
    # Twice differentiated, and so in single precision and never compiled.
    with torch.autocast(real.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
        real, fake = wide(real.detach()), wide(fake.detach())
        share = torch.rand_like(real.flatten(1)[:, :1]).reshape(-1, *(1,) * (real.ndim - 1))
        between = torch.lerp(fake, real, share).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return sample_mean((slope.flatten(1).norm(dim=1) - 1).square(), counts)


def sample_mean(x: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean of `x` (B, ...) over the samples that count, in float32 at least; 0 if none does.

    Args:
        x: of each sample one value, or some that count equally.
        counts: (B,) weight of each sample; None for equal ones.
    """
    if counts is None:
        return wide(x).mean()
    return (wide(x).flatten(1).mean(1) if x.ndim > 1 else wide(x)).mul(counts).sum() / counts.sum().clamp(min=1)


def accuracy(on_real: Tensor, on_fake: Tensor, cut: float = 0.5) -> Tensor:
    """How often a critic is right: the mean of the shares of real outputs >= cut and of fake outputs <= cut.

    Args:
        on_real: the critic's outputs for real samples, any shape.
        on_fake: its outputs for fake samples, any shape.
        cut: decision threshold; an output on it counts as right on both sides.

    Returns:
        A scalar in [0, 1], without gradient.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([0.9, 0.5, 0.1, 0.7]), torch.tensor([0.2, 0.8])).item()
        0.625
    """
    real, fake = (on_real.detach() >= cut), (on_fake.detach() <= cut)
    return (real.float().mean() + fake.float().mean()) / 2
