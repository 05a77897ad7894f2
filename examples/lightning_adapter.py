"""Any method as a LightningModule, for those who want Lightning's Trainer around it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as lightning
import torch

from modistill.data.batch import Batch
from modistill.methods.base import Method


class LightningAdapter(lightning.LightningModule):
    """Plays a method's turns under manual optimisation.

    What the Trainer then no longer does by itself: gradient clipping, accumulation, and counting (it counts one step a turn).
    """

    automatic_optimization = False

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimiser a player, in the order of `players`."""
        return [make(list(self.method.get_submodule(name).parameters())) for name, make in self.method.players.items()]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch: every turn updates its player before the method goes on."""
        found: Any = self.optimizers()
        optimizers = dict(zip(self.method.players, found if isinstance(found, list) else [found], strict=True))
        for player, terms in self.method.losses(batch):
            optimizers[player].zero_grad()
            parameters = list(self.method.get_submodule(player).parameters())
            self.manual_backward(torch.stack(list(terms.values())).sum(), inputs=parameters)
            optimizers[player].step()
            self.log_dict({f"train/{player}/{name}": value for name, value in terms.items()}, batch_size=len(batch.cases))
