"""Subsets of modalities: what one patient has, what another lacks.

A subset of M modalities is a row of M booleans, `presence`; the subsets of a batch are the rows of (B, M). Nothing here knows
names: the order of the columns is that of whoever asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

__all__ = ["all_subsets", "draw_subset", "only_present"]


def all_subsets(modalities: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The 2^M - 1 non-empty subsets, small ones first, each in the order given.

    Example:
        >>> all_subsets(("t1", "t2"))
        (('t1',), ('t2',), ('t1', 't2'))
    """
    return tuple(subset for n in range(1, len(modalities) + 1) for subset in combinations(modalities, n))


def draw_subset(presence: Tensor, probability: float = 1.0) -> Tensor:
    """A random non-empty subset of what each sample has: first how many, uniformly, then which of them.

    So the full set of M has probability 1/M and each single one 1/M^2, as in U-HeMIS and U-HVED (Dorent et al., MICCAI 2019).

    Args:
        presence: (B, M) bool, at least one true in every row.
        probability: with which a sample is given a subset; else it keeps all it has.

    Returns:
        (B, M) bool on the same device, drawn by PyTorch's generator of the CPU whatever the device.
    """
    there = presence.cpu()
    counts = (torch.rand(len(there)) * there.sum(1)).floor() + 1  # 1 ... n
    places = torch.where(there, torch.rand(there.shape), torch.inf).argsort(1).argsort(1)
    kept = torch.rand(len(there)) >= probability
    return torch.where(kept[:, None], there, places < counts[:, None]).to(presence.device)


def only_present(images: Tensor, presence: Tensor) -> Tensor:
    """`images` (B, M, *spatial) with zeros wherever `presence` (B, M) is false, whatever stood there (NaN too)."""
    return torch.where(presence.reshape(*presence.shape, *(1,) * (images.ndim - 2)), images, 0)
