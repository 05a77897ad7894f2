"""Losses of a network that gives logits at every scale of its decoder, as nnU-Net's does.

Isensee et al., Nature Methods 2021 (https://doi.org/10.1038/s41592-020-01008-z). Logits z_s of scale s, 0 the full resolution,
learn from the labels y_s, taken from the nearest voxel. Their weights w_s halve from scale to scale, the coarsest has none, and
they sum to 1: for five scales .533, .267, .133, .067 and 0. With p_s = softmax(z_s), C classes and class 0 the background

    Dice            sum_s w_s (1 - mean_{c>0} (2 sum_v p_sc y_sc + eps) / (sum_v p_sc + sum_v y_sc + eps)), eps = 1e-5
    cross-entropy   sum_s w_s mean_v -log p_s,y(v)(v)
    soft labels     sum_s w_s T^2 mean_v -sum_c q_sc log softmax(z_s / T)_c, with the teacher's q_s = softmax(t_s / T)

Dice is taken of each sample, then averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from modistill.losses.distillation import output_distillation
from modistill.losses.segmentation import soft_dice, weighted_cross_entropy

__all__ = ["deep_cross_entropy", "deep_dice", "deep_soft_labels", "nearest", "scale_weights"]


def scale_weights(scales: int) -> list[float]:
    """Weights of the scales, halving from one to the next, with sum 1; the coarsest has none, unless it is the only one.

    Example:
        >>> [round(weight, 4) for weight in scale_weights(5)]
        [0.5333, 0.2667, 0.1333, 0.0667, 0.0]
    """
    halving = [0.5**s for s in range(max(1, scales - 1))]
    return [weight / sum(halving) for weight in halving] + [0.0] * (scales - len(halving))


def deep_dice(scales: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The Dice term.

    Args:
        scales: logits (B, C, *spatial / 2^s), the full resolution first.
        labels: (B, *spatial) int64.
    """
    return _sum(len(scales), lambda s: _dice_loss(scales[s], nearest(labels, scales[s].shape[2:])))


def deep_cross_entropy(scales: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The cross-entropy, of logits and labels as for `deep_dice`."""
    equal = scales[0].new_ones(scales[0].shape[1])
    return _sum(len(scales), lambda s: weighted_cross_entropy(scales[s], nearest(labels, scales[s].shape[2:]), equal))


def deep_soft_labels(scales: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """The cross-entropy with the teacher's soft labels.

    Args:
        scales: the student's logits (B, C, *spatial / 2^s).
        teacher: the teacher's, which are not taught.
        temperature: T.
    """
    return temperature**2 * _sum(len(scales), lambda s: output_distillation(scales[s], teacher[s].detach(), temperature))


def nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (B, *spatial) at another size, each from the nearest voxel."""
    return functional.interpolate(labels[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long()


def _sum(scales: int, loss: Callable[[int], Tensor]) -> Tensor:
    """The weighted sum of the losses of all scales that have a weight."""
    return torch.stack([weight * loss(s) for s, weight in enumerate(scale_weights(scales)) if weight]).sum()


def _dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - soft Dice of logits (B, C, *spatial) and labels (B, *spatial), mean over samples and classes but the background."""
    reference = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    return 1 - soft_dice(logits.softmax(1)[:, 1:], reference[:, 1:]).mean()
