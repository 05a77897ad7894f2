"""What a method is given at every step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Images, reference and provenance of `B` samples.

    Attributes:
        images: (B, M, *spatial) float; all modalities of the training cohort, in the order of `modalities`. The channel of a
            modality that a case lacks is zero.
        labels: (B, *spatial) int64 class indices, 0 = background.
        presence: (B, M) bool; which modalities each case really has.
        modalities: names of the M channels.
        available_modalities: those that exist at test time, in the order the student reads them.
        cases: B case ids.
        epoch: counts from 0; with it, and with the steps of an optimiser, go the schedules of a method.
    """

    images: Tensor
    labels: Tensor
    presence: Tensor
    modalities: tuple[str, ...]
    available_modalities: tuple[str, ...]
    cases: tuple[str, ...]
    epoch: int = 0

    @property
    def all(self) -> Tensor:
        """(B, M, *spatial): every modality, the privileged ones included."""
        return self.images

    @property
    def available(self) -> Tensor:
        """(B, A, *spatial): the modalities that exist at test time."""
        return self.select(self.available_modalities)

    def select(self, modalities: tuple[str, ...]) -> Tensor:
        """(B, len(modalities), *spatial), in the order asked for."""
        if modalities == self.modalities:
            return self.images
        return self.images[:, [self.modalities.index(name) for name in modalities]]

    def having(self, modalities: tuple[str, ...]) -> Batch:
        """The samples that have all of these, with these images alone: one domain of an unpaired batch.

        Example:
            >>> presence = torch.tensor([[True, False], [False, True]])
            >>> batch = Batch(torch.rand(2, 2, 8, 8), torch.zeros(2, 8, 8), presence, ("ct", "mr"), ("ct",), ("a", "b"))
            >>> batch.having(("mr",)).cases, tuple(batch.having(("mr",)).images.shape)
            (('b',), (1, 1, 8, 8))
        """
        channels = [self.modalities.index(name) for name in modalities]
        rows = self.presence[:, channels].all(1).nonzero().flatten().tolist()
        return replace(
            self,
            images=self.images[rows][:, channels],
            labels=self.labels[rows],
            presence=self.presence[rows][:, channels],
            modalities=modalities,
            available_modalities=tuple(name for name in self.available_modalities if name in modalities),
            cases=tuple(self.cases[row] for row in rows),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on another device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            presence=self.presence.to(device, non_blocking=True),
        )
