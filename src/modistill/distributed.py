"""What several ranks agree on. Without a process group each function is the identity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn

__all__ = ["average_gradients", "leave", "rank_mean", "rank_sum"]


def _world() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank_mean(value: Tensor) -> float:
    """Mean of a scalar over all ranks: what a decision that every rank must take alike has to rest on."""
    mean = value.detach().float().clone()
    if (world := _world()) > 1:
        distributed.all_reduce(mean)
        mean /= world
    return float(mean)


def rank_sum(value: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, through which gradients go: for losses that are no mean over samples.

    The gradient is the sum of all ranks' gradients: every rank has the whole loss, and `average_gradients` then gives what one
    process would have got. All ranks have to call it equally often.
    """
    if _world() == 1:
        return value
    summed: Tensor = _RankSum.apply(value)  # type: ignore[no-untyped-call]
    return summed


class _RankSum(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks, in one message."""
    if (world := _world()) == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    message = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(message)
    message /= world
    parts = torch.split(message, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def leave() -> None:
    """Leave the group of ranks, while Python still runs.

    Gloo's threads hold tensors; where the interpreter ends first, letting go of one aborts a process whose work is done.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
