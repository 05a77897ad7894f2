"""What a method is: networks, the turns in which they learn, and how to segment afterwards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Self, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from modistill.data.batch import Batch

__all__ = ["AnySubsetMethod", "Method", "OptimizerFactory", "Terms", "Turn", "class_weights_buffer", "frozen", "nested"]

Network = TypeVar("Network", bound=nn.Module)

Terms: TypeAlias = Mapping[str, Tensor]
Turn: TypeAlias = tuple[str, Terms]
OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Method(nn.Module):
    """A plain module with players, one generator of turns, and a way to segment.

    Attributes:
        players: path of a submodule -> how it is optimised (a call from parameters to an optimiser). What is not listed here
            never learns.
        reads: path of a network -> names of the modalities it reads, in channel order. These are also the networks that can
            start from the weights of another run (`start_from` in a recipe).
        deployed: path of the network that `segment` uses; only its weights go into `model.safetensors`.
        silent: paths of networks that stay in eval mode while the others train, so that their dropout does.
    """

    players: Mapping[str, OptimizerFactory]
    reads: Mapping[str, tuple[str, ...]]
    deployed: ClassVar[str]
    silent: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the silent networks."""
        super().train(mode)
        for path in self.silent:
            self.get_submodule(path).eval()
        return self

    @property
    def available(self) -> tuple[str, ...]:
        """What a patient must have, in the channel order of `segment`."""
        return self.reads[self.deployed]

    @property
    def modalities(self) -> tuple[str, ...]:
        """What training reads: all that any network does, the most informed network's order first.

        A training case must have all of it, unless the method serves any subset.
        """
        longest = max(self.reads.values(), key=len)
        return tuple(dict.fromkeys([*longest, *(name for names in self.reads.values() for name in names)]))

    @abstractmethod
    def losses(self, batch: Batch) -> Iterator[Turn]:
        """Play one round: each `yield` names who learns and from which terms (scalars, summed).

        The engine updates that player before the next line runs. Two rules: a decision taken from data goes through
        `modistill.distributed.rank_mean`, so that all ranks take the same turns; and no `yield` inside a `with`.
        """

    @abstractmethod
    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial) from the available modalities (B, A, *spatial), channel order `available`."""


class AnySubsetMethod(Method):
    """A method that serves every non-empty subset of the modalities its deployed network reads.

    Training cases, too, may lack some of them: `batch.presence` tells which, case by case.
    """

    @abstractmethod
    def segment_subset(self, images: Tensor, presence: Tensor) -> Tensor:
        """Logits (B, C, *spatial) from what each case has.

        Args:
            images: (B, A, *spatial), channel order `available`; what stands in a channel that is not there changes no bit.
            presence: (B, A) bool, at least one true in every row.
        """

    def for_patient(self, has: Sequence[bool]) -> Callable[[Tensor], Tensor]:
        """`segment` for windows (B, A, *spatial) of one patient, who `has` (A,) these modalities."""

        def segment(images: Tensor) -> Tensor:
            presence = torch.tensor(has, dtype=torch.bool, device=images.device)
            return self.segment_subset(images, presence.expand(len(images), -1))

        return segment

    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial) of cases that have all modalities."""
        return self.segment_subset(images, torch.ones(images.shape[:2], dtype=torch.bool, device=images.device))


def nested(name: str, players: Mapping[str, OptimizerFactory]) -> dict[str, OptimizerFactory]:
    """The players of a part, addressed from the whole.

    Example:
        >>> list(nested("translation", {"generator": torch.optim.Adam}))
        ['translation.generator']
    """
    return {f"{name}.{player}": factory for player, factory in players.items()}


def frozen(network: Network) -> Network:
    """The same network, never to learn again (its dropout still follows train and eval mode)."""
    network.requires_grad_(False)
    return network


def class_weights_buffer(weights: Sequence[float] | None, classes: int) -> Tensor:
    """(C,) float class weights; ones where none are given.

    Raises:
        ValueError: their number is not `classes`, or one is not positive.
    """
    if weights is None:
        return torch.ones(classes)
    if len(weights) != classes or min(weights) <= 0:
        raise ValueError(f"class_weights needs {classes} positive numbers, it has {list(weights)}")
    return torch.tensor(list(weights), dtype=torch.float32)
