"""How segmentors that show hints are compared with the same network written out step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from modistill.networks.hinted import HintedNetwork


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shaken(net: HintedNetwork) -> HintedNetwork:
    """With norms, their running statistics and biases that are not the identity, so that no term can hide."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand_like(buffer))
    return net


def check_against(plain: Callable[..., tuple[Tensor, dict]], net: HintedNetwork, images: Tensor, *, idle: bool = False) -> None:
    """Logits, the maps of every site, and the gradients of logits and high hints are those of the plain form.

    With `idle` there are parameters without a gradient; then they are the same in both.
    """
    expected, maps = plain(net, images)
    for at in net.sites:
        logits, hints = net.with_hints(images, at)
        torch.testing.assert_close(logits, expected)
        for hint, other in zip(hints, maps[at], strict=True):
            torch.testing.assert_close(hint, other)
    directions = [torch.randn_like(x) for x in (expected, *maps["high"])]
    logits, hints = net.with_hints(images)
    learning = [p for p in net.parameters() if p.requires_grad]
    mine = torch.autograd.grad([logits, *hints], learning, directions, allow_unused=idle)
    other = torch.autograd.grad([expected, *maps["high"]], learning, directions, allow_unused=idle)
    for one, two in zip(mine, other, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)
