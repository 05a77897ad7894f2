"""Learning rates that fall with the steps an optimiser has made.

The count lives in the optimiser's own state, so it is saved with a checkpoint and goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Adam, Optimizer

__all__ = ["stepped_adam"]


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
