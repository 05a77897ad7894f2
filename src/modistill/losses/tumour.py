"""A tumour alone on an empty slice, and how far two such images lie apart: UTAD-Net, https://arxiv.org/abs/2403.20168."""

from __future__ import annotations

from torch import Tensor

from modistill.hardware import wide

__all__ = ["cut", "tumour_difference"]


def cut(mask: Tensor, images: Tensor) -> Tensor:
    """The tumour of images, all else at their lowest value: exactly -1.

    Args:
        mask: (B, 1, *spatial) bool.
        images: (B, 1, *spatial) in [-1, 1].

    Example:
        >>> import torch
        >>> cut(torch.tensor([True, False]), torch.tensor([0.25, 0.25])).tolist()
        [0.25, -1.0]
    """
    return images.masked_fill(~mask, -1.0)


def tumour_difference(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference over the voxels of a tumour plus that over all others: however small, it counts the same.

    Args:
        one: (B, 1, *spatial).
        other: the same shape.
        mask: (B, 1, *spatial) bool, the tumour.

    Returns:
        The mean over the samples that have a tumour, in float32 at least; 0 if none has.

    Example:
        >>> import torch
        >>> mask, image = torch.tensor([[[True, False, False, False]], [[False] * 4]]), torch.zeros(2, 1, 4)
        >>> tumour_difference(image + mask, image, mask).item()  # of all eight voxels one differs, by 1
        1.0
    """
    difference, inside = (wide(one) - wide(other)).abs().flatten(1), mask.flatten(1)
    size = inside.sum(1)
    apart = [difference.mul(part).sum(1) / part.sum(1).clamp(min=1) for part in (inside, ~inside)]
    return (apart[0] + apart[1]).mul(size > 0).sum() / (size > 0).sum().clamp(min=1)
