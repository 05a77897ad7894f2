"""Learning rates that fall with the steps an optimiser has made, or with the epochs.

Steps are counted in the optimiser's own state, so the count is saved with a checkpoint and goes on from there. Epochs stand in
every batch, so the method says which it is, and nothing has to be saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from modistill.errors import TrainingStopped

__all__ = ["PolynomialSGD", "stepped_adam"]


class PolynomialSGD:
    """nnU-Net's optimiser: SGD with Nesterov momentum at the rate lr (1 - e / E)^power in epoch e of E.

    Isensee et al., Nature Methods 2021 (https://doi.org/10.1038/s41592-020-01008-z). It is called with parameters and gives
    their optimiser, as `Method.players` wants it; all optimisers that it gave follow the epoch it was told last. So a method
    with several players says `epoch` once, at the head of `losses`.

    Args:
        epochs: E.
        lr: rate of the first epoch.
        momentum: Nesterov's.
        weight_decay: on every parameter.
        power: 1 for a straight line.

    Raises:
        ValueError: fewer than one epoch, or a momentum outside (0, 1).

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> sgd = PolynomialSGD(4, lr=0.8, power=1.0)
        >>> optimizer, rates = sgd([weight]), []
        >>> weight.grad = torch.ones(1)
        >>> for epoch in range(4):
        ...     sgd.begin(epoch)
        ...     _ = optimizer.step()
        ...     rates.append(optimizer.param_groups[0]["lr"])
        >>> rates
        [0.8, 0.6000000000000001, 0.4, 0.2]
    """

    def __init__(
        self, epochs: int, *, lr: float = 1e-2, momentum: float = 0.99, weight_decay: float = 3e-5, power: float = 0.9
    ) -> None:
        if epochs < 1 or not 0 < momentum < 1:
            raise ValueError(f"epochs is {epochs} and momentum {momentum}; 1 or more, and between 0 and 1, are needed")
        self.epoch, self.epochs = 0, epochs
        self.lr, self.momentum, self.weight_decay, self.power = lr, momentum, weight_decay, power

    def begin(self, epoch: int) -> None:
        """The steps from now on belong to this epoch, counted from 0.

        Raises:
            TrainingStopped: it is one after the last, whose rate would be zero.
        """
        if epoch >= self.epochs:
            raise TrainingStopped(
                f"the learning rate has fallen to zero after {self.epochs} epochs",
                remedy="leave out method.epochs, or give it the value of training.epochs",
            )
        self.epoch = epoch

    def __call__(self, parameters: Iterable[nn.Parameter]) -> SGD:
        """An optimiser of these parameters that takes its rate from the epoch, before every step."""
        optimizer = SGD(
            parameters, lr=self.lr, momentum=self.momentum, nesterov=True, weight_decay=self.weight_decay, fused=True
        )
        optimizer.register_step_pre_hook(self._set_rate)
        return optimizer

    def _set_rate(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.lr * (1 - self.epoch / self.epochs) ** self.power


def stepped_adam(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    divisor: float,
    every: int,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Adam:
    """Adam whose learning rate is divided at regular steps: step n, from 0, is made at lr / divisor^floor(n / every).

    Args:
        parameters: what it optimises.
        lr: learning rate of the first `every` steps.
        divisor: by which the rate is divided.
        every: steps between two divisions.
        betas: of Adam.

    Raises:
        ValueError: `divisor` is not positive, or `every` is less than 1.

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> optimizer = stepped_adam([weight], lr=0.4, divisor=4, every=2)
        >>> weight.grad, rates = torch.ones(1), []
        >>> for _ in range(4):
        ...     _ = optimizer.step()
        ...     rates.append(optimizer.param_groups[0]["lr"])
        >>> rates
        [0.4, 0.4, 0.1, 0.1]
    """
    if divisor <= 0 or every < 1:
        raise ValueError(f"the learning rate needs a positive divisor and 1 step or more, not {divisor} and {every}")
    optimizer = Adam(parameters, lr=lr, betas=betas, fused=True)

    def divide(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            if group["steps"] and group["steps"] % every == 0:
                group["lr"] /= divisor  # what another schedule has made of the rate stays
            group["steps"] += 1

    for group in optimizer.param_groups:
        group["steps"] = 0
    optimizer.register_step_pre_hook(divide)
    return optimizer
