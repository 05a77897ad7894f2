"""Regions: named unions of label values. The only place where label numbers meet their meaning."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.errors import LabelError

__all__ = ["Regions"]


class Regions(Mapping[str, frozenset[int]]):
    """Named unions of label values, overlapping (WT contains TC contains ET) or exclusive.

    Args:
        regions: region name -> label values whose union it is. Background (0) belongs to no region.

    Raises:
        LabelError: no region, an empty one, or one that holds the background.

    Example:
        >>> regions = Regions({"WT": {1, 2, 4}, "TC": {1, 4}, "ET": {4}})
        >>> regions.encode(np.array([[[0, 1, 2, 4]]])).astype(int).reshape(3, 4)
        array([[0, 1, 1, 1],
               [0, 1, 0, 1],
               [0, 0, 0, 1]])
    """

    def __init__(self, regions: Mapping[str, Collection[int]]) -> None:
        self._regions = {str(name): frozenset(int(value) for value in values) for name, values in regions.items()}
        if not self._regions:
            raise LabelError("no region given")
        for name, values in self._regions.items():
            if not values or min(values) <= 0:
                raise LabelError(
                    f"region {name} must hold at least one label and not the background, it holds {sorted(values)}"
                )

    def __getitem__(self, name: str) -> frozenset[int]:
        return self._regions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    def __repr__(self) -> str:
        return f"Regions({ {name: set(sorted(values)) for name, values in self._regions.items()} })"

    @property
    def values_used(self) -> tuple[int, ...]:
        """All label values that belong to a region, ascending."""
        return tuple(sorted(frozenset().union(*self._regions.values())))

    def encode(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Label map (D, H, W) -> one binary map a region, (R, D, H, W)."""
        return np.stack([np.isin(labels, sorted(values)) for values in self._regions.values()])

    def decode(self, regions: NDArray[Any]) -> NDArray[np.int64]:
        """Binary maps (R, D, H, W) -> label map: the label whose membership pattern equals the voxel's.

        Painted from the largest union to the smallest, so that nested regions win over those around them; a pattern that no
        label has (say ET without TC) takes the label of its innermost region. `decode(encode(labels)) == labels` whenever
        the regions tell all labels apart.
        """
        labels = np.zeros(regions.shape[1:], dtype=np.int64)
        order = sorted(range(len(self)), key=lambda r: -len(list(self._regions.values())[r]))
        sets = list(self._regions.values())
        for position, index in enumerate(order):
            inner = frozenset().union(*[sets[i] for i in order[position + 1 :] if sets[i] < sets[index]])
            own = sorted(sets[index] - inner) or sorted(sets[index])
            labels[np.asarray(regions[index], dtype=bool)] = own[0]
        return labels
