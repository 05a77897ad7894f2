"""What a method is: networks, the turns in which they learn, and how to segment afterwards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from modistill.data.batch import Batch

__all__ = ["Method", "OptimizerFactory", "Terms", "Turn", "nested"]

Terms: TypeAlias = Mapping[str, Tensor]
Turn: TypeAlias = tuple[str, Terms]
OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Method(nn.Module):
    """A plain module with players, one generator of turns, and a way to segment.

    Attributes:
        players: path of a submodule -> how it is optimised (a call from parameters to an optimiser). What is not listed here
            never learns.
        deployed: path of the submodule that `segment` needs; only its weights go into `model.safetensors`.
        modalities: what `losses` reads from a batch, in channel order.
        available: what `segment` reads, in channel order: the modalities a patient must have.
    """

    players: Mapping[str, OptimizerFactory]
    deployed: ClassVar[str]
    modalities: tuple[str, ...]
    available: tuple[str, ...]

    @abstractmethod
    def losses(self, batch: Batch) -> Iterator[Turn]:
        """Play one round: each `yield` names who learns and from which terms (finite scalars, summed).

        The engine updates that player before the next line runs. Two rules: a decision taken from data goes through
        `modistill.distributed.rank_mean`, so that all ranks take the same turns; and no `yield` inside a `with`.
        """

    @abstractmethod
    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial) from the available modalities (B, A, *spatial), channel order `available`."""


def nested(name: str, players: Mapping[str, OptimizerFactory]) -> dict[str, OptimizerFactory]:
    """The players of a part, addressed from the whole: `nested("translation", translation.players)`."""
    return {f"{name}.{player}": factory for player, factory in players.items()}
