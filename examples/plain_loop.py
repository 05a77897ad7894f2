"""A method without the engine: this is all that `modistill.training.fit` does at heart."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from modistill.data.batch import Batch
from modistill.methods.base import Method


def train(method: Method, batches: Iterable[Batch]) -> None:
    """Train a method on the CPU, one turn at a time."""
    players = {name: list(method.get_submodule(name).parameters()) for name in method.players}
    optimizers = {name: method.players[name](parameters) for name, parameters in players.items()}
    for batch in batches:
        for player, terms in method.losses(batch):
            optimizers[player].zero_grad()
            torch.stack(list(terms.values())).sum().backward(inputs=players[player])
            optimizers[player].step()


if __name__ == "__main__":
    from modistill.methods.supervised import Supervised

    method = Supervised(("t1", "t2"), classes=2, width=4, dims=2)
    labels = torch.zeros(1, 32, 32, dtype=torch.int64)
    labels[:, 8:24, 8:24] = 1
    images = torch.randn(1, 2, 32, 32) + labels[:, None]
    batch = Batch(images, labels, torch.ones(1, 2, dtype=torch.bool), ("t1", "t2"), ("t1", "t2"), ("square",))
    train(method, [batch] * 50)
    method.eval()
    found = method.segment(images).argmax(1)
    print(f"accuracy after 50 steps: {(found == labels).float().mean():.3f}")
