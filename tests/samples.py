"""Batches that many tests need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from modistill.data.batch import Batch


@dataclass(frozen=True)
class RandomBatches:
    """Batches of noise with a bright tumour in every modality: a pure function of (seed, epoch, position)."""

    modalities: tuple[str, ...]
    available: tuple[str, ...]
    count: int = 2
    batch_size: int = 1
    size: tuple[int, ...] = (32, 32, 32)
    classes: int = 4
    seed: int = 0
    domains: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return self.count

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        for position in range(start, self.count):
            samples = range(rank, self.batch_size, world)
            yield self.batch(epoch, position, samples)

    def batch(self, epoch: int, position: int, samples: range | None = None) -> Batch:
        domains = self.domains or (self.modalities,)
        chosen = [i * len(domains) + d for i in samples or range(self.batch_size) for d in range(len(domains))]
        parts = [self._sample(epoch, position, index) for index in chosen]
        images, labels = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
        presence = torch.tensor([[name in domains[index % len(domains)] for name in self.modalities] for index in chosen])
        cases = tuple(f"case{position}.{index}" for index in range(len(parts)))
        return Batch(images, labels, presence, self.modalities, self.available, cases, epoch)

    def _sample(self, epoch: int, position: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(hash((self.seed, epoch, position, index)) % 2**31)
        labels = torch.zeros(self.size, dtype=torch.int64)
        for value in range(1, self.classes):
            labels[tuple(slice(4 + 2 * value, 20 - 2 * value) for _ in self.size)] = value
        images = torch.randn(len(self.modalities), *self.size, generator=generator) * 0.3 + labels
        return images, labels


def leave_out(batch: Batch, modalities: tuple[str, ...], garbage: float) -> Batch:
    """The same batch with something else in these channels."""
    images = batch.images.clone()
    for name in modalities:
        images[:, batch.modalities.index(name)] = garbage
    return replace(batch, images=images)
