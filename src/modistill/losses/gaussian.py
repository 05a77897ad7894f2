"""Gaussians with independent components, their products, and how far they lie from each other.

A variational encoder gives such a Gaussian for every voxel and channel. Those of several modalities are fused as experts (Wu
and Goodman, "Multimodal Generative Models for Scalable Weakly-Supervised Learning", NeurIPS 2018,
https://arxiv.org/abs/1802.05335), with the guards and weights of U-HVED (Dorent et al., MICCAI 2019,
https://arxiv.org/abs/1907.11150). All is computed in float32 at least.

`B` batch, `M` experts (modalities), `S` = 2^M - 1 non-empty subsets of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modistill.hardware import wide

__all__ = ["Gaussian", "kl_divergence", "product_of_experts", "subset_divergence"]

_GUARD = 1e-7  # of the published code, wherever it divides by a variance or takes its logarithm
_SLAB = 2**16  # elements of one map that are worked on at once


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


def kl_divergence(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p || q) of every element, in nats.

    (log var_q - log var_p - 1 + (var_p + (mean_p - mean_q)^2) / (var_q + 1e-7)) / 2: 0 for equal ones, but for the guard.
    """
    ratio = (p.logvar.exp() + (p.mean - q.mean).square()) / (q.logvar.exp() + _GUARD)
    return (q.logvar - p.logvar - 1 + ratio) / 2


def subset_divergence(experts: Sequence[Gaussian], presence: Tensor, chosen: Tensor) -> Tensor:
    """How far the products of all subsets of the experts lie from that of the chosen one, and from N(0, 1).

    For a case with n experts, and q_S the product of the subset S of them (see `product_of_experts`),

        1 / (2^n - 2) sum_{S != chosen} KL(q_chosen || q_S)  +  1 / (2^n - 1) sum_S KL(q_S || N(0, 1))

    each KL a mean over elements, the whole a mean over cases. A case with a single expert has the second sum only.

    The products of all subsets would take 2^M - 1 times the memory of one: they are made slab by slab, and once more in the
    backward pass.

    Args:
        experts: M Gaussians (B, C, *spatial); those of absent modalities must be finite, and receive a gradient of 0.
        presence: (B, M) bool, the experts of each case; at least one.
        chosen: (B, M) bool, a non-empty subset of them.

    Returns:
        A scalar, in nats.
    """
    bits = 2 ** torch.arange(presence.shape[1], device=presence.device)
    codes = torch.arange(1, 2 ** len(bits), device=presence.device)  # of the S subsets: bit m says whether expert m is in it
    possible = ((codes[:, None] & bits > 0) <= presence[:, None]).all(2)  # (B, S)
    code = (chosen * bits).sum(1, keepdim=True)
    others = possible & (codes != code)
    to_others = others / others.sum(1, keepdim=True).clamp(min=1)
    to_prior = possible / possible.sum(1, keepdim=True)

    first = experts[0].mean
    lines = max(1, _SLAB // first[:, :, 0].numel())
    slabs = zip(*(torch.split(value, lines, dim=2) for expert in experts for value in expert), strict=True)
    of_slab = partial(checkpoint, _of_slab, code - 1, to_others, to_prior, use_reentrant=False, preserve_rng_state=False)
    return torch.stack([of_slab(*slab) for slab in slabs]).sum() / first.numel()


def _of_slab(row: Tensor, to_others: Tensor, to_prior: Tensor, *values: Tensor) -> Tensor:
    """The weighted divergences, summed over the cases and elements of a slab of means and log-variances in turn."""
    mean, logvar = (wide(torch.stack([value.flatten(1) for value in values[part::2]], 1)) for part in (0, 1))  # (B, M, n)
    t = _precision(logvar)
    products = _normalised(1 + _subset_sums(t), _subset_sums(t * mean))
    chosen = Gaussian(*(value.take_along_dim(row[..., None], 1) for value in products))
    standard = Gaussian(*torch.zeros(2, device=mean.device))
    inter = (to_others * kl_divergence(chosen, products).sum(2)).sum()
    return inter + (to_prior * kl_divergence(products, standard).sum(2)).sum()


def _subset_sums(x: Tensor) -> Tensor:
    """(B, M, n) -> (B, S, n): the sum over every subset, row s that of code s + 1."""
    sums = x.new_zeros(len(x), 1, x.shape[2])
    for one in torch.split(x, 1, dim=1):
        sums = torch.cat([sums, sums + one], 1)
    return sums[:, 1:]


def _precision(logvar: Tensor) -> Tensor:
    return 1 / (wide(logvar).exp() + _GUARD)


def _normalised(precision: Tensor, weighted: Tensor) -> Gaussian:
    return Gaussian(weighted / precision, (1 / precision + _GUARD).log())
