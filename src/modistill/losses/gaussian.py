"""Gaussians with independent components, their products, and how far they lie from each other.

A variational encoder gives such a Gaussian for every voxel and channel. Those of several modalities are fused as experts (Wu
and Goodman, "Multimodal Generative Models for Scalable Weakly-Supervised Learning", NeurIPS 2018,
https://arxiv.org/abs/1802.05335), with the guards and weights of U-HVED (Dorent et al., MICCAI 2019,
https://arxiv.org/abs/1907.11150). All is computed in float32 at least.

`B` batch, `M` experts (modalities), `S` = 2^M - 1 non-empty subsets of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modistill.hardware import wide

__all__ = ["Gaussian", "product_of_experts", "subset_divergence"]

_GUARD = 1e-7  # of the published code, wherever it divides by a variance or takes its logarithm
_SLAB = 2**14  # elements of one map that are worked on at once: those of all subsets fit into the cache


class Gaussian(NamedTuple):
    """Independent normal distributions N(mean, exp(logvar)), one for every element of two maps of one shape."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """A draw for a noise of 1, the mean for 0: mean + noise * exp(logvar / 2) * e with e ~ N(0, 1).

        Args:
            noise: (B,), one for each case.
        """
        noise = noise.reshape(-1, *(1,) * (self.mean.ndim - 1))
        return self.mean + noise * (self.logvar / 2).exp() * torch.randn_like(self.mean)


def product_of_experts(experts: Sequence[Gaussian], presence: Tensor) -> Gaussian:
    """The Gaussian proportional to N(0, 1) times the experts that are there.

    With T_m = 1 / (exp(logvar_m) + 1e-7), and sums over the experts m that a case has, its precision is P = 1 + sum T_m, its
    mean sum T_m mean_m / P and its log-variance log(1 / P + 1e-7).

    Args:
        experts: M Gaussians of shape (B, ...); the values of an absent one, which must be finite, change no bit.
        presence: (B, M) bool.

    Example:
        >>> one, two = Gaussian(torch.ones(1, 1), torch.zeros(1, 1)), Gaussian(torch.zeros(1, 1), torch.zeros(1, 1))
        >>> found = product_of_experts([one, two], torch.tensor([[True, True]]))
        >>> round(found.mean.item(), 4), round(found.logvar.exp().item(), 4)
        (0.3333, 0.3333)
    """
    precision, weighted = torch.ones_like(wide(experts[0].mean)), torch.zeros_like(wide(experts[0].mean))
    for expert, there in zip(experts, presence.unbind(1), strict=True):
        t = torch.where(there.reshape(-1, *(1,) * (precision.ndim - 1)), _precision(expert.logvar), 0)
        precision, weighted = precision + t, weighted + t * expert.mean
    return _normalised(precision, weighted)


def subset_divergence(experts: Sequence[Gaussian], presence: Tensor, chosen: Tensor) -> Tensor:
    """How far the products of all subsets of the experts lie from that of the chosen one, and from N(0, 1).

    For a case with n experts, and q_S the product of the subset S of them (see `product_of_experts`),

        1 / (2^n - 2) sum_{S != chosen} KL(q_chosen || q_S)  +  1 / (2^n - 1) sum_S KL(q_S || N(0, 1))

    each KL a mean over elements, the whole a mean over cases. A case with a single expert has the second sum only.

    where

        KL(p || q) = (log var_q - log var_p - 1 + (var_p + (mean_p - mean_q)^2) / (var_q + 1e-7)) / 2

    The products of all subsets would take 2^M - 1 times the memory of one. They are made slab by slab, and the gradient with
    them, so that no product is made twice or kept.

    Args:
        experts: M Gaussians (B, C, *spatial); those of absent modalities must be finite, and receive a gradient of 0.
        presence: (B, M) bool, the experts of each case; at least one.
        chosen: (B, M) bool, a non-empty subset of them.

    Returns:
        A scalar, in nats.
    """
    bits = 2 ** torch.arange(presence.shape[1], device=presence.device)
    codes = torch.arange(2 ** len(bits), device=presence.device)  # of the subsets: bit m says whether expert m is in it
    possible = ((codes[:, None] & bits > 0) <= presence[:, None]).all(2) & (codes > 0)  # (B, S)
    code = (chosen * bits).sum(1, keepdim=True)
    others = possible & (codes != code)
    to_others = others / others.sum(1, keepdim=True).clamp(min=1)
    to_prior = possible / possible.sum(1, keepdim=True)
    values = [value for expert in experts for value in expert]
    total: Tensor = _SubsetDivergence.apply(code, to_others, to_prior, *values)  # type: ignore[no-untyped-call]
    return total / experts[0].mean.numel()


class _SubsetDivergence(torch.autograd.Function):
    """The weighted divergences of `subset_divergence`, summed over all elements, with their gradient made beside them.

    Everything is worked out for all subsets of a slab of `n` elements at once, (B, S, n); the empty one weighs nothing.
    """

    @staticmethod
    def forward(ctx: Any, code: Tensor, to_others: Tensor, to_prior: Tensor, *values: Tensor) -> Tensor:
        lines = max(1, _SLAB // values[0][:, :, 0].numel())
        gradients = [torch.empty_like(value) for value in values]
        total = []
        for slab in zip(*(torch.split(map_, lines, dim=2) for map_ in (*values, *gradients)), strict=True):
            means, logvars = (wide(torch.stack([x.flatten(1) for x in slab[k : len(values) : 2]], 1)) for k in (0, 1))
            t = _precision(logvars)
            found, of_precision, of_weighted = _divergences(
                _over_subsets(t, 1), _over_subsets(t * means, 0), code, to_others, to_prior
            )
            total.append(found)
            of_product = _back_from_subsets(of_weighted)
            of_t = _back_from_subsets(of_precision) + of_product * means
            of_logvar = of_t * t * (_GUARD * t - 1)  # T = 1 / (exp(logvar) + 1e-7)
            for k, of_map in enumerate((of_product * t, of_logvar)):
                for place, gradient in zip(slab[len(values) + k :: 2], of_map.unbind(1), strict=True):
                    place.copy_(gradient.view(place.shape))
        ctx.save_for_backward(*gradients)
        return torch.stack(total).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(x * gradient.to(x.dtype) for x in ctx.saved_tensors)


def _divergences(
    precision: Tensor, weighted: Tensor, code: Tensor, to_others: Tensor, to_prior: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over a slab of the weighted divergences, and its derivatives by `precision` and `weighted`.

    With m = weighted / precision and v = 1 / precision + 1e-7 of every subset, m' and v' of the chosen one, and halves a and b
    of the two weights, an element adds

        sum_S a (log(v / v') - 1 + (v' + (m - m')^2) / (v + 1e-7)) + b (v + m^2 - log v - 1)
    """
    code, a, b = (x[..., None] for x in (code, (to_others / 2).to(precision), (to_prior / 2).to(precision)))
    inverse = 1 / precision
    mean, var = weighted * inverse, inverse + _GUARD
    chosen_mean, chosen_var = mean.take_along_dim(code, 1), var.take_along_dim(code, 1)
    below = 1 / (var + _GUARD)
    weight, away = a * below, mean - chosen_mean
    pull = weight * away
    spread = torch.addcmul(pull * away, weight, chosen_var)
    terms = torch.addcmul(spread, a - b, var.log()).addcmul_(b, torch.addcmul(var, mean, mean))
    total = terms.sum() - (a * chosen_var.log()).sum() - (a + b).sum() * mean.shape[2]

    of_mean = torch.addcmul(pull, b, mean).mul_(2)
    of_var = torch.addcdiv(b - spread * below, a - b, var)
    of_mean.scatter_add_(1, code.expand_as(chosen_mean), -2 * pull.sum(1, keepdim=True))
    of_var.scatter_add_(1, code.expand_as(chosen_var), weight.sum(1, keepdim=True) - a.sum(1, keepdim=True) / chosen_var)
    of_precision = torch.addcmul(of_mean * mean, of_var, inverse).mul_(inverse).neg_()
    return total, of_precision, of_mean.mul_(inverse)


def _over_subsets(x: Tensor, start: float) -> Tensor:
    """(B, M, n) -> (B, 2^M, n): `start` and the sum over every subset, row s that of code s."""
    batch, members, elements = x.shape
    sums = x.new_full((batch, 2**members, elements), start)
    for m in range(members):
        torch.add(sums[:, : 2**m], x[:, m : m + 1], out=sums[:, 2**m : 2 ** (m + 1)])
    return sums


def _back_from_subsets(x: Tensor) -> Tensor:
    """(B, 2^M, n) -> (B, M, n): the transpose of `_over_subsets`, the sum over all subsets that contain a member."""
    members = []
    while x.shape[1] > 1:
        without, with_last = x.chunk(2, dim=1)
        members.append(with_last.sum(1))
        x = without + with_last
    return torch.stack(members[::-1], 1)


def _precision(logvar: Tensor) -> Tensor:
    return 1 / (wide(logvar).exp() + _GUARD)


def _normalised(precision: Tensor, weighted: Tensor) -> Gaussian:
    return Gaussian(weighted / precision, (1 / precision + _GUARD).log())
