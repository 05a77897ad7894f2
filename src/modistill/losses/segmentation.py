"""Losses that compare a segmentation with its reference.

`B` batch, `C` classes; spatial axes may be two or three.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from modistill.hardware import wide

__all__ = ["decayed", "dice_loss", "soft_dice", "weighted_cross_entropy"]


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy with a weight for each class, averaged inside every sample, then over the batch.

    For one sample, with `v` over its voxels and `y(v)` the reference label,

        L = sum_v w[y(v)] * (-log softmax(logits(v))[y(v)]) / sum_v w[y(v)]

    PyTorch's weighted mean divides by the weights of the whole batch instead; the two agree for a batch of one, which HAD-Net
    trains with. Dividing per sample makes the loss of a batch the mean of the losses of its parts, on one device or several.

    Args:
        logits: (B, C, *spatial).
        labels: (B, *spatial) int64, values 0 ... C - 1.
        weights: (C,), not negative; at least one label of every sample must have a weight above zero.

    Returns:
        A scalar, in nats, computed in float32 at least.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 4, 2, 2)
        >>> round(weighted_cross_entropy(logits, torch.zeros(1, 2, 2, dtype=torch.long), torch.ones(4)).item(), 4)
        1.3863
    """
    logits = wide(logits)
    weights = weights.to(logits.device, logits.dtype)
    losses = functional.cross_entropy(logits, labels, weights, reduction="none").flatten(1).sum(1)
    return (losses / weights[labels].flatten(1).sum(1)).mean()


def soft_dice(p: Tensor, g: Tensor, *, squared: bool = False, smooth: float = 1e-5) -> Tensor:
    """Overlap of two fuzzy segmentations, for every sample and class.

    (2 sum_v p g + smooth) / (sum_v p + sum_v g + smooth), or with squares in the denominator as in V-Net (Milletari et al.,
    3DV 2016, https://arxiv.org/abs/1606.04797). A Dice *loss* is 1 minus a mean of this.

    Args:
        p: (B, C, *spatial) probabilities.
        g: (B, C, *spatial) probabilities, or a one-hot reference.
        squared: sum p^2 and g^2 in the denominator.
        smooth: added above and below; a class that is in neither gives 1.

    Returns:
        (B, C) in [0, 1], computed in float32 at least.

    Example:
        >>> import torch
        >>> p, g = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[1.0, 0.0]]])
        >>> soft_dice(p, g, smooth=0).item(), round(soft_dice(p, g, squared=True, smooth=0).item(), 4)
        (0.5, 0.6667)
    """
    p, g = wide(p).flatten(2), wide(g).flatten(2)
    sizes = p.square() + g.square() if squared else p + g
    return (2 * (p * g).sum(2) + smooth) / (sizes.sum(2) + smooth)


def dice_loss(logits: Tensor, labels: Tensor, *, smooth: float = 1e-3) -> Tensor:
    """1 minus the mean soft Dice of all classes, the background included, in every sample, then over the batch.

    Args:
        logits: (B, C, *spatial).
        labels: (B, *spatial) int64, values 0 ... C - 1.
        smooth: see `soft_dice`. A class that a sample lacks costs nearly 1 as long as any of it is found, and 0 without.

    Returns:
        A scalar, computed in float32 at least.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2, 4)  # half of everything: Dice 2 * 1.5 / (2 + 3) and 2 * 0.5 / (2 + 1)
        >>> round(dice_loss(logits, torch.tensor([[1, 0, 0, 0]]), smooth=0).item(), 4)
        0.5333
    """
    g = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    return 1 - soft_dice(wide(logits).softmax(1), g, smooth=smooth).mean()


def decayed(weights: Tensor, epoch: int, factor: float = 0.98) -> Tensor:
    """Class weights that fade to 1: max(w * factor^epoch, 1), as HAD-Net's pre-training does (epochs count from 0).

    Weights below 1, which it has none of, stay as they are.

    Example:
        >>> import torch
        >>> [round(w, 2) for w in decayed(torch.tensor([1.0, 59.4507, 23.3190, 71.8481]), epoch=100).tolist()]
        [1.0, 7.88, 3.09, 9.53]
    """
    return torch.where(weights > 1, (weights * factor**epoch).clamp(min=1), weights)
