"""Losses of a critic and of whom it judges.

Least squares: Mao et al., Least Squares Generative Adversarial Networks (ICCV 2017), with targets 1 (real) and 0 (fake), no
factor one half, no label smoothing: as in HAD-Net's equations 1 and 2.

Log-likelihood: Goodfellow et al., Generative Adversarial Nets (NIPS 2014, https://arxiv.org/abs/1406.2661), the form in which
CMEDL's equation 5 is printed. Both are objects with the same two halves, one instead of the other. A critic minimises `real` of
real samples and `fake` of fake ones; who makes the fakes minimises `real` of them.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from modistill.hardware import wide

__all__ = ["LeastSquares", "LogLikelihood", "accuracy", "least_squares", "log_likelihood"]


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
