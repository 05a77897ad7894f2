"""Learning rates that fall with the steps an optimiser has made, or with the epochs.

Steps are counted in the optimiser's own state, so the count is saved with a checkpoint and goes on from there. Epochs stand in
every batch, so the method says which it is, and nothing has to be saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from modistill.errors import TrainingStopped

__all__ = ["LinearDecayAdam", "PolynomialSGD", "stepped_adam"]


class _EpochSchedule(ABC):
    """Gives optimisers whose rate follows the epoch that it was told last, and ends at `final`."""

    def __init__(self, epochs: int, final: float = 0.0) -> None:
        self.epoch, self.epochs, self.final = 0, epochs, final

    def begin(self, epoch: int) -> None:
        """The steps from now on belong to this epoch, counted from 0.

        Raises:
            TrainingStopped: it is one after the last, for which there is no rate.
        """
        if epoch >= self.epochs:
            raise TrainingStopped(
                f"the learning rate has fallen to {self.final or 'zero'} after {self.epochs} epochs",
                remedy="leave out method.epochs, or give it the value of training.epochs",
            )
        self.epoch = epoch

    @abstractmethod
    def _rate(self, epoch: int) -> float:
        """Learning rate of an epoch."""

    def _follow(self, optimizer: Optimizer) -> None:
        """From now on the rate of this optimiser is set before every step."""
        optimizer.register_step_pre_hook(self._set_rate)

    def _set_rate(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self._rate(self.epoch)


class PolynomialSGD(_EpochSchedule):
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
        super().__init__(epochs)
        self.lr, self.momentum, self.weight_decay, self.power = lr, momentum, weight_decay, power

    def __call__(self, parameters: Iterable[nn.Parameter]) -> SGD:
        """An optimiser of these parameters that takes its rate from the epoch, before every step."""
        optimizer = SGD(
            parameters, lr=self.lr, momentum=self.momentum, nesterov=True, weight_decay=self.weight_decay, fused=True
        )
        self._follow(optimizer)
        return optimizer

    def _rate(self, epoch: int) -> float:
        return float(self.lr * (1 - epoch / self.epochs) ** self.power)


class LinearDecayAdam(_EpochSchedule):
    """Adam at a constant rate, which then falls along a line, as CycleGAN and StarGAN are trained.

    With e finished epochs of E, and C of them at the constant rate, it is

        lr - (lr - final) max(0, e - C) / (E - C),

    so the last epoch is made one step of the line above `final`. Zhu et al., ICCV 2017 (https://arxiv.org/abs/1703.10593): 100
    epochs of 2e-4, and 100 more to 0. As `PolynomialSGD` it is called with parameters, and a method says `begin` once, at the
    head of `losses`.

    Args:
        epochs: E.
        constant: C; None for half of them.
        lr: rate at first.
        final: rate at the end, after the last epoch.
        betas: of Adam.

    Raises:
        ValueError: fewer than one epoch, no epoch left in which to fall, or a rate that is negative or rises.

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> adam = LinearDecayAdam(4, lr=0.5)
        >>> optimizer, rates = adam([weight]), []
        >>> weight.grad = torch.ones(1)
        >>> for epoch in range(4):
        ...     adam.begin(epoch)
        ...     _ = optimizer.step()
        ...     rates.append(optimizer.param_groups[0]["lr"])
        >>> rates
        [0.5, 0.5, 0.5, 0.25]
    """

    def __init__(
        self,
        epochs: int,
        *,
        constant: int | None = None,
        lr: float = 1e-4,
        final: float = 0.0,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        if epochs < 1 or (constant is not None and not 0 <= constant < epochs):
            raise ValueError(f"epochs is {epochs} and constant {constant}; 1 or more, and fewer than all of them, are needed")
        if not 0 <= final <= lr:
            raise ValueError(f"final is {final} and lr {lr}; the rate falls, and not below 0")
        super().__init__(epochs, final)
        self.constant = epochs / 2 if constant is None else constant
        self.lr, self.betas = lr, betas

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Adam:
        """An optimiser of these parameters that takes its rate from the epoch, before every step."""
        optimizer = Adam(parameters, lr=self.lr, betas=self.betas, fused=True)
        self._follow(optimizer)
        return optimizer

    def _rate(self, epoch: int) -> float:
        return self.lr - (self.lr - self.final) * max(0, epoch - self.constant) / (self.epochs - self.constant)


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
