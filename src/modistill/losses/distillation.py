"""Losses with which a student imitates a teacher: its segmentation, and its latent space.

Overlapping regions (in BraTS the enhancing tumour lies in the core, the core in the whole tumour) and exclusive classes are one
thing here. A region is a set of classes; its logit, worked out from the logits `x` of all classes, is the log-odds

    z = log sum_{c in region} exp x_c - log sum_{c not in region} exp x_c

so that sigma(z) is the region's probability under softmax(x), whatever constant is added to `x`. A class is a region of one.
`B` batch, `C` classes, `R` regions; spatial axes may be two or three.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from modistill.errors import ModelError
from modistill.hardware import wide
from modistill.losses.segmentation import soft_dice

__all__ = [
    "dice_and_cross_entropy",
    "hint_loss",
    "latent_divergence",
    "output_distillation",
    "region_logits",
    "region_masks",
    "soft_targets",
]


def region_logits(logits: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """Log-odds (B, R, *spatial) of every region, in float32 at least.

    Args:
        logits: (B, C, *spatial), before a softmax over exclusive classes.
        regions: class indices of each region: some of 0 ... C - 1, not all.

    Example:
        >>> logits = torch.tensor([1.0, 3.0, 2.0]).log().reshape(1, 3, 1)
        >>> region_logits(logits, [(1,), (1, 2)]).sigmoid().flatten().tolist()  # 3/6 and 5/6
        [0.5, 0.8333333134651184]
    """
    classes = wide(logits).unbind(1)

    def log_odds(region: Sequence[int]) -> Tensor:
        inside = [x for c, x in enumerate(classes) if c in region]
        outside = [x for c, x in enumerate(classes) if c not in region]
        return reduce(torch.logaddexp, inside) - reduce(torch.logaddexp, outside)

    return torch.stack([log_odds(region) for region in regions], 1)


def region_masks(labels: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """Reference (B, R, *spatial) of every region, float 0 or 1, from class indices (B, *spatial).

    Example:
        >>> region_masks(torch.tensor([[0, 1, 2]]), [(1,), (1, 2)]).tolist()
        [[[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]]
    """
    return torch.stack([reduce(torch.logical_or, [labels == c for c in region]) for region in regions], 1).float()


def soft_targets(
    logits: Tensor,
    regions: Sequence[Sequence[int]],
    temperature: float,
    activation: Literal["softmax", "sigmoid"] = "softmax",
) -> Tensor:
    """A teacher's softened probabilities of every region, in float32 at least.

    Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015 (https://arxiv.org/abs/1503.02531). Both
    activations agree at temperature 1 and for two classes.

    Args:
        logits: (B, C, *spatial).
        regions: class indices of each region.
        temperature: T; above 1 it softens.
        activation: "softmax" divides the logits of the exclusive classes by T, then sums the probabilities of a region;
            "sigmoid" divides the region's own logit, as a network with one sigmoid output per region does.

    Returns:
        (B, R, *spatial) in [0, 1].

    Example:
        >>> logits = torch.tensor([1.0, 32.0, 1.0]).log().reshape(1, 3, 1)  # 32 = 2^5
        >>> soft_targets(logits, [(1,)], temperature=5).item()  # 2 / (1 + 2 + 1)
        0.5
    """
    if activation == "sigmoid":
        return (region_logits(logits, regions) / temperature).sigmoid()
    return region_logits(wide(logits) / temperature, regions).sigmoid()


def dice_and_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice loss plus binary cross-entropy, as KD-Net compares the student with its teacher and with the reference.

    For one sample, with p = sigma(logits) and the targets q, both fuzzy,

        L = mean_r (1 - Dice(p_r, q_r)) + mean_{r, v} (-q log p - (1 - q) log(1 - p))

    Neither part reaches zero where q is strictly between 0 and 1.

    Args:
        logits: (B, R, *spatial), one per region.
        targets: (B, R, *spatial) in [0, 1]: soft targets or a reference.

    Returns:
        A scalar, the mean over the batch, computed in float32 at least.

    Example:
        >>> round(dice_and_cross_entropy(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]])).item(), 4)  # 1 - 1/2 + ln 2
        1.1931
    """
    logits, targets = wide(logits), wide(targets)
    dice = soft_dice(logits.sigmoid(), targets).mean()
    return 1 - dice + functional.binary_cross_entropy_with_logits(logits, targets)


def latent_divergence(
    student: Tensor,
    teacher: Tensor,
    over: Literal["channel", "spatial", "all"] = "channel",
    reduction: Literal["batch", "mean"] = "batch",
) -> Tensor:
    """Kullback-Leibler divergence KL(teacher || student) of two feature maps, each turned into distributions by a softmax.

    Args:
        student: (B, channels, *spatial).
        teacher: of the same shape.
        over: what sums to 1: "channel", the channels of each voxel; "spatial", the voxels of each channel; "all", a sample's
            channels and voxels together.
        reduction: "batch" sums over a sample and averages over the batch; "mean" divides by the number of elements (B *
            channels * voxels), as PyTorch's `kl_div` does unless told otherwise.

    Returns:
        A scalar in nats, zero where both maps give the same distributions, computed in float32 at least.

    Raises:
        ModelError: the maps differ in shape.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 1), torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1)
        >>> round(latent_divergence(student, teacher).item(), 4)  # 3/4 ln 3/2 + 1/4 ln 1/2
        0.1308
    """
    if student.shape != teacher.shape:
        raise ModelError(
            f"feature maps of {tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher)",
            remedy="build both networks with the same width",
        )

    def log_softmax(x: Tensor) -> Tensor:
        return wide(x).flatten(1 if over == "all" else 2).log_softmax(2 if over == "spatial" else 1)

    total = functional.kl_div(log_softmax(student), log_softmax(teacher), reduction="sum", log_target=True)
    return total / (len(student) if reduction == "batch" else student.numel())


def hint_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], reduction: Literal["mean", "positions", "sum"] = "mean"
) -> Tensor:
    """Squared differences between the maps of a student and those of its teacher, added over layers.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015, https://arxiv.org/abs/1412.6550); as in CMEDL (Jiang et al.,
    IEEE TMI 2022, https://arxiv.org/abs/2107.07985), which prints the sum over all elements of a map.

    Args:
        student: (B, channels, *spatial) of each layer.
        teacher: the same layers of the teacher. The gradient goes to both.
        reduction: "sum" adds up the elements of a map and averages over the batch: with the paper's weight of 1, millions at
            the start; "mean" averages over the elements, so that a map counts as much at every size; "positions" adds up
            channels and averages over positions.

    Returns:
        A scalar, computed in float32 at least.

    Raises:
        ModelError: other layers, or maps of another shape.

    Example:
        >>> one, other = [torch.zeros(1, 2, 3)], [torch.full((1, 2, 3), 2.0)]
        >>> [hint_loss(one, other, how).item() for how in ("mean", "positions", "sum")]
        [4.0, 8.0, 24.0]
    """
    shapes = [[tuple(x.shape) for x in maps] for maps in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ModelError(f"hints of {shapes[0]} (student) and {shapes[1]} (teacher)", remedy="give both one architecture")
    pairs = zip(student, teacher, strict=True)
    squares = [(wide(s) - wide(t)).square().flatten(2) for s, t in pairs]
    if reduction == "mean":
        return torch.stack([x.mean() for x in squares]).sum()
    sums = [x.sum(1).mean(1) if reduction == "positions" else x.sum((1, 2)) for x in squares]
    return torch.stack(sums).sum(0).mean()


def output_distillation(student: Tensor, teacher: Tensor, temperature: float = 0.5) -> Tensor:
    """Cross-entropy of the student's softened classes with the teacher's: -mean_v sum_c p_c log q_c, both softmax(z / T).

    Hinton, Vinyals, Dean (2015, https://arxiv.org/abs/1503.02531), without their factor T^2. CMEDL's grid search chose T = 0.5,
    which sharpens.

    Args:
        student: logits (B, C, *spatial).
        teacher: logits of the same shape; the gradient goes to both.
        temperature: T.

    Returns:
        A scalar in nats, computed in float32 at least.

    Example:
        >>> logits = torch.tensor([1.0, 9.0]).log().reshape(1, 2, 1)
        >>> round(output_distillation(torch.zeros(1, 2, 1), logits).item(), 4)  # ln 2, whatever the teacher says
        0.6931
    """
    log_q = (wide(student) / temperature).log_softmax(1)
    return -((wide(teacher) / temperature).softmax(1) * log_q).sum(1).mean()
