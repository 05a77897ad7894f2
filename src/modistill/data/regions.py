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

        A pattern that no label has (say ET without TC) takes the label that is proper to the smallest of its regions.
        `decode(encode(labels)) == labels` whenever the regions tell all labels apart.

        Example:
            >>> regions = Regions({"WT": {1, 2, 4}, "TC": {1, 4}, "ET": {4}})
            >>> regions.decode(np.array([[0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]))
            array([0, 2, 1, 4, 4])
        """
        patterns = np.zeros(regions.shape[1:], dtype=np.intp)
        for bit, region in enumerate(regions):
            patterns |= np.asarray(region, dtype=bool).astype(np.intp) << bit
        present = np.flatnonzero(np.bincount(patterns.ravel(), minlength=1))
        table = np.zeros(int(present.max(initial=0)) + 1, dtype=np.int64)
        for pattern in present:
            table[pattern] = self._label_of(frozenset(bit for bit in range(len(self)) if pattern >> bit & 1))
        return table[patterns]

    def _label_of(self, members: frozenset[int]) -> int:
        """The label of a voxel that lies in these regions (by number) and in no other."""
        sets = list(self._regions.values())
        for value in self.values_used:
            if members == {number for number, values in enumerate(sets) if value in values}:
                return value
        if not members:
            return 0
        innermost = min((sets[number] for number in sorted(members)), key=len)
        proper = innermost - frozenset().union(*[values for values in sets if values < innermost])
        return min(proper or innermost)
