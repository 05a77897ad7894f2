"""Instance norm and LeakyReLU as one function that keeps one map for the backward pass instead of two.

For every sample and channel, with the mean and variance over its voxels,

    z = weight * (x - mean) / sqrt(variance + eps) + shift,        y = z if z > 0 else slope * z

Autograd would keep `x` for the norm beside `y` for the next convolution. But `y` can be turned back: its sign tells `z`, and
`z` the normalised `x` (unless a weight is near zero). So `y`, which is kept anyway, is all that is needed.

The bias of a convolution in front of the norm cancels: it moves the mean and nothing else. It is left out of the computation;
its gradient is zero (a plain network computes it as rounding noise).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["norm_activation"]


def norm_activation(
    x: Tensor,
    *,
    bias: Tensor | None = None,
    weight: Tensor | None = None,
    shift: Tensor | None = None,
    slope: float,
    eps: float = 1e-5,
) -> Tensor:
    """LeakyReLU of the instance norm of `x + bias`, per sample and channel.

    Args:
        x: (B, C, *spatial), with more than one voxel; a convolution's output without its bias.
        bias: (C,) of that convolution; it cancels and receives a gradient of zero.
        weight: (C,) scale after the norm; None for 1.
        shift: (C,) added after the norm; None for 0.
        slope: of LeakyReLU for negative values.
        eps: added to the variance.

    Returns:
        (B, C, *spatial), in the memory order of `x`.
    """
    if x.device.type not in {"cpu", "cuda"} or torch.compiler.is_compiling():  # a compiler fuses the plain form by itself
        moved = x if bias is None else x + bias.reshape(-1, *(1,) * (x.ndim - 2))
        return functional.leaky_relu(functional.instance_norm(moved, None, None, weight, shift, True, 0.0, eps), slope)
    result: Tensor = _NormActivation.apply(x, bias, weight, shift, slope, eps)  # type: ignore[no-untyped-call]
    return result


class _NormActivation(torch.autograd.Function):
    """In sums of differences from the mean: PyTorch's batch norm of channels-last maps loses three digits of fp32 instead."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, weight: Tensor | None, shift: Tensor | None, slope: float, eps: float
    ) -> Tensor:
        axes = list(range(2, x.ndim))
        precise = _wide(x)
        mean = precise.mean(axes, keepdim=True)
        z = precise - mean
        deviation = (z.square().mean(axes, keepdim=True) + eps).rsqrt_()
        z.mul_(deviation if weight is None else deviation * _channelwise(weight, x))
        if shift is not None:
            z.add_(_channelwise(shift, x))
        y = functional.leaky_relu_(z, slope).to(x.dtype)
        ctx.slope, ctx.bias = slope, bias
        ctx.inverts = _invertible(x, weight, shift, slope)
        ctx.save_for_backward(y, *((None, None) if ctx.inverts else (x, mean)), deviation, weight, shift)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, x, mean, deviation, weight, shift = ctx.saved_tensors
        axes, n = list(range(2, y.ndim)), y[0, 0].numel()
        g = torch.ops.aten.leaky_relu_backward(gradient, y, ctx.slope, True)
        g = _wide(g)
        if ctx.inverts:
            normed = _wide(functional.leaky_relu(y, 1 / ctx.slope))
            normed = normed if shift is None else normed.sub_(_channelwise(shift, y))
            normed = normed if weight is None else normed.div_(_channelwise(weight, y))
        else:
            normed = (_wide(x) - mean).mul_(deviation)
        sum_g, sum_gx = g.sum(axes, keepdim=True), (g * normed).sum(axes, keepdim=True)
        scale = deviation if weight is None else deviation * _channelwise(weight, y)
        for_x = g.sub_(normed.mul_(sum_gx / n)).sub_(sum_g / n).mul_(scale)
        return (
            for_x.to(y.dtype),
            None if ctx.bias is None else torch.zeros_like(ctx.bias),
            None if weight is None else sum_gx.sum(0).flatten().to(weight.dtype),
            None if shift is None else sum_g.sum(0).flatten().to(shift.dtype),
            None,
            None,
        )


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _channelwise(parameter: Tensor, x: Tensor) -> Tensor:
    return _wide(parameter).view(1, -1, *(1,) * (x.ndim - 2))


def _invertible(x: Tensor, weight: Tensor | None, shift: Tensor | None, slope: float) -> bool:
    """Whether `x` follows from `y` to rounding. Always False on GPUs, where looking at the weights would stall the queue."""
    if x.device.type != "cpu" or slope <= 0:
        return False
    if weight is None:
        return True
    size = weight.detach().abs()
    return bool((size > (1e-6 if shift is None else (shift.detach().abs() / 4).clamp(min=1e-6))).all())
