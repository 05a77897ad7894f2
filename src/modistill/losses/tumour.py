"""A tumour alone on an empty slice, and how far two such images lie apart: UTAD-Net's, https://arxiv.org/abs/2403.20168."""

from __future__ import annotations

from typing import Literal

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


def tumour_difference(one: Tensor, other: Tensor, mask: Tensor, over: Literal["slice", "tumour"] = "slice") -> Tensor:
    """Mean absolute difference of two images of tumours, in float32 at least.

    Args:
        one: (B, 1, *spatial).
        other: the same shape.
        mask: (B, 1, *spatial) bool, the tumour.
        over: "slice" for the mean over all voxels, of which a tumour's are few; "tumour" for the mean over the voxels of
            tumours plus that over all others, so that it is of no consequence how few.

    Example:
        >>> import torch
        >>> mask, image = torch.tensor([[[True, False, False, False]]]), torch.zeros(1, 1, 4)
        >>> [tumour_difference(image + mask, image, mask, over).item() for over in ("slice", "tumour")]
        [0.25, 1.0]
    """
    difference = (wide(one) - wide(other)).abs()
    if over == "slice":
        return difference.mean()
    parts = [difference.masked_fill(~part, 0).sum() / part.sum().clamp(min=1) for part in (mask, ~mask)]
    return parts[0] + parts[1]
