"""The three segmentors of CMEDL by name (Jiang et al., IEEE TMI 2022, https://arxiv.org/abs/2107.07985)."""

from __future__ import annotations

from typing import Literal, TypeAlias

from modistill.networks.bilinear_unet import BilinearUNet
from modistill.networks.blocks import NormKind
from modistill.networks.fc_densenet import FCDenseNet
from modistill.networks.hinted import HintedNetwork
from modistill.networks.mrrn import MRRN

__all__ = ["SegmentorName", "build_segmentor"]

SegmentorName: TypeAlias = Literal["unet", "fc_densenet", "mrrn"]

_SEGMENTORS: dict[str, type[HintedNetwork]] = {"unet": BilinearUNet, "fc_densenet": FCDenseNet, "mrrn": MRRN}


def build_segmentor(
    name: SegmentorName, in_channels: int, classes: int, *, width: int | None, norm: NormKind, dropout: float | None, dims: int
) -> HintedNetwork:
    """A segmentor with its own width and dropout where none are given.

    Raises:
        ValueError: an unknown name or norm, or a width the network cannot have.
    """
    if name not in _SEGMENTORS:
        raise ValueError(f"no segmentor {name!r}: {', '.join(_SEGMENTORS)}")
    given = {key: value for key, value in (("width", width), ("dropout", dropout)) if value is not None}
    return _SEGMENTORS[name](in_channels, classes, norm=norm, dims=dims, **given)  # type: ignore[call-arg, arg-type]
