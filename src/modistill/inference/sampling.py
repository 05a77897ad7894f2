"""Several answers to one window: mirrored views, Monte-Carlo dropout, the members of an ensemble.

A *sampler* is called with images (B, M, *spatial) and yields logits (B, C, *spatial), one after the other; who calls it keeps
running sums, so the number of samples costs time and no memory. Samplers nest: the mirrored views of an ensemble of Monte-Carlo
dropout passes are one sampler.

Monte-Carlo dropout: Gal and Ghahramani, "Dropout as a Bayesian Approximation" (ICML 2016, https://arxiv.org/abs/1506.02142).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from modistill.errors import ModelError, RecipeError
from modistill.networks.blocks import ChannelDropout

__all__ = ["Ensemble", "MCDropout", "Mirrored", "Once", "Sampler", "require_dropout", "seeded"]

Segment: TypeAlias = Callable[[Tensor], Tensor]
Sampler: TypeAlias = Callable[[Tensor], Iterator[Tensor]]

_DROPOUT = (ChannelDropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Whatever a method draws inside, it draws alike every time; the generators outside notice nothing."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Once:
    """The one answer of a network that answers the same each time."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment

    def __call__(self, images: Tensor) -> Iterator[Tensor]:
        """See `Sampler`."""
        yield self.segment(images)


class Mirrored:
    """All answers of a sampler to the images and to their mirror images, mirrored back.

    Args:
        sampler: is asked.
        axes: 0, 1, 2 for D, H, W; all 2^n combinations of them.

    Raises:
        RecipeError: another axis, or one named twice.
    """

    def __init__(self, sampler: Sampler, axes: Sequence[int]) -> None:
        if any(axis not in (0, 1, 2) for axis in axes) or len(set(axes)) < len(axes):
            raise RecipeError(f"mirror names axes 0, 1, 2, each once at most; got {list(axes)}")
        self.sampler = sampler
        self.views = [view for count in range(len(axes) + 1) for view in combinations([axis + 2 for axis in axes], count)]

    def __call__(self, images: Tensor) -> Iterator[Tensor]:
        """See `Sampler`."""
        for view in self.views:
            for logits in self.sampler(images.flip(view) if view else images):
                yield logits.flip(view) if view else logits


class Ensemble:
    """All answers of several samplers."""

    def __init__(self, members: Sequence[Sampler]) -> None:
        self.members = members

    def __call__(self, images: Tensor) -> Iterator[Tensor]:
        """See `Sampler`."""
        for member in self.members:
            yield from member(images)


class MCDropout:
    """Passes of a network whose dropout stays active.

    With one window at a time, pass n draws the same masks for every window: it is one and the same thinned network for the
    whole volume. What the network computes before its first dropout (`before_dropout`, names of its submodules) is computed
    once for all passes. Between two calls the network is as it was.

    Args:
        segment: images -> logits, by `network`.
        network: in eval mode; its dropout layers alone are switched to training, for the time of a call.
        passes: their number.
        seed: of the masks.

    Raises:
        ModelError: the network has no dropout, so that all passes would be equal.
    """

    def __init__(self, segment: Segment, network: nn.Module, *, passes: int, seed: int = 0) -> None:
        self.dropout = require_dropout(network)
        self.segment, self.passes, self.seed = segment, passes, seed
        self.before_dropout = [network.get_submodule(name) for name in getattr(network, "before_dropout", ())]

    def __call__(self, images: Tensor) -> Iterator[Tensor]:
        """See `Sampler`."""
        devices = [images.device] if images.device.type == "cuda" else []
        with _active(self.dropout), _computed_once(self.before_dropout):
            for number in range(self.passes):
                with torch.random.fork_rng(devices):
                    torch.manual_seed(int(np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)[0] >> 1))
                    logits = self.segment(images)
                yield logits


def require_dropout(network: nn.Module, name: str = "the network") -> list[nn.Module]:
    """The dropout layers of a network.

    Raises:
        ModelError: it has none that ever drops.
    """
    layers: list[nn.Module] = [layer for layer in network.modules() if isinstance(layer, _DROPOUT) and layer.p > 0]
    if not layers:
        reason = f"{name} has no dropout: all Monte-Carlo passes would be equal"
        raise ModelError(reason, remedy="ask for an ensemble or mirroring instead")
    return layers


@contextmanager
def _active(layers: Sequence[nn.Module]) -> Iterator[None]:
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


@contextmanager
def _computed_once(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Each module repeats its first answer."""
    for module in modules:
        module.forward = _repeating(module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the class's own comes back into view


def _repeating(compute: Callable[..., Any]) -> Callable[..., Any]:
    answers: list[Any] = []

    def answer(*inputs: Any) -> Any:
        if not answers:
            answers.append(compute(*inputs))
        return answers[0]

    return answer
