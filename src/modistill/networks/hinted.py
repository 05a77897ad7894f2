"""Segmentation networks that show maps on the way to their logits: where hints are given and taken.

A hint is a map inside a network that another network is taught to imitate (Romero et al., "FitNets: Hints for Thin Deep Nets",
ICLR 2015, https://arxiv.org/abs/1412.6550). In CMEDL (Jiang et al., IEEE TMI 2022, https://arxiv.org/abs/2107.07985) a network
for CT imitates the last maps of one for MR. The paper compares three sites, which each of its networks has here:

====  ============================================================
site  maps
====  ============================================================
low   of the first convolutions
mid   of the lowest resolution
high  of the last two scales on the way up; the one that is trained
====  ============================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from modistill.errors import ModelError
from modistill.networks.convolution import channels_last

__all__ = ["HintedNetwork", "Hints"]


class Hints:
    """The maps that a pass is asked for. It is called with every map that may be one, and keeps no other.

    Args:
        names: of the maps that are asked for.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = names
        self._maps: dict[str, Tensor] = {}

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """`x` itself, kept if it is asked for."""
        if name in self.names:
            self._maps[name] = x
        return x

    def maps(self) -> tuple[Tensor, ...]:
        """What was asked for, in the order of the names."""
        return tuple(self._maps[name] for name in self.names)


class HintedNetwork(nn.Module, ABC):
    """Logits of every class for every voxel, and the maps of a site, at any size from the minimum up.

    Args:
        in_channels: number of modalities it reads.
        classes: number of classes, the background included.
        dims: 2 or 3.
        channels: name of a map -> its channels, for all maps that stand in `sites`.

    Attributes:
        sites: name of a site -> names of its maps.
        halvings: how often the network halves a map.
    """

    sites: ClassVar[Mapping[str, tuple[str, ...]]]
    halvings: ClassVar[int]

    def __init__(self, in_channels: int, classes: int, *, dims: int, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.in_channels, self.classes, self.dims = in_channels, classes, dims
        self._channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, *spatial) from images (B, in_channels, *spatial), no activation.

        Raises:
            ModelError: other channels or axes than the network reads, or an axis too small for its `halvings`.
        """
        return self._segment(self._checked(images), Hints())

    def with_hints(self, images: Tensor, at: str = "high") -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (B, classes, *spatial), and the maps (B, channels, *spatial of their scale) of a site.

        Raises:
            ModelError: see `forward`.
            ValueError: there is no such site.
        """
        hints = Hints(self._names(at))
        logits = self._segment(self._checked(images), hints)
        return logits, hints.maps()

    def hint_channels(self, at: str = "high") -> tuple[int, ...]:
        """The channels of the maps of a site.

        Raises:
            ValueError: there is no such site.
        """
        return tuple(self._channels[name] for name in self._names(at))

    @abstractmethod
    def _segment(self, images: Tensor, hints: Hints) -> Tensor:
        """Logits, after `hints` was called with every map of every site."""

    def _names(self, at: str) -> tuple[str, ...]:
        if at not in self.sites:
            raise ValueError(f"no hints at {at!r}; {type(self).__name__} has {', '.join(self.sites)}")
        return self.sites[at]

    def _checked(self, images: Tensor) -> Tensor:
        """The images, in the memory order that convolutions like."""
        channels, *size = images.shape[1:]
        if channels != self.in_channels or len(size) != self.dims:
            raise ModelError(
                f"images of {channels} channels and {len(size)} axes, the network reads {self.in_channels} and {self.dims}",
                remedy="give the modalities the model was trained with",
            )
        least = 2**self.halvings
        if min(size) < least or max(size) < 2 * least:
            raise ModelError(
                f"images of {'x'.join(map(str, size))} voxels are too small: every axis needs {least}, one of them {2 * least}",
                remedy="pad the images or choose a larger patch",
            )
        return channels_last(images)
