"""Instance norm and LeakyReLU as one function that keeps one map for the backward pass instead of two.

For every sample and channel, with the mean and variance over its voxels,

    z = weight * (x - mean) / sqrt(variance + eps) + shift,        y = z if z > 0 else slope * z

Autograd would keep `x` for the norm beside `y` for the next convolution. But `y` can be turned back: its sign tells `z`, and `z`
the normalised `x` (unless a weight is near zero). So `y`, which is kept anyway, is all that is needed.

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
    """Instance norm is batch norm of one sample: PyTorch's batch norm kernels do the sums, sample by sample."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, weight: Tensor | None, shift: Tensor | None, slope: float, eps: float
    ) -> Tensor:
        samples = [torch.native_batch_norm(sample, weight, shift, None, None, True, 0.0, eps) for sample in torch.split(x, 1)]
        z, means, scales = (part[0] if len(x) == 1 else torch.cat(part) for part in zip(*samples, strict=True))
        y = functional.leaky_relu_(z, slope)
        ctx.slope, ctx.bias = slope, bias
        ctx.inverts = _invertible(x, weight, shift, slope)
        means, scales = means.reshape(len(x), -1), scales.reshape(len(x), -1)
        ctx.save_for_backward(y, *((None, None) if ctx.inverts else (x, means)), scales, weight, shift)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, x, means, scales, weight, shift = ctx.saved_tensors
        gradient = torch.ops.aten.leaky_relu_backward(gradient, y, ctx.slope, True)
        if ctx.inverts:
            # Seen from z, the normalised x is (z - shift) / weight: a batch norm whose mean and scale are known.
            x = functional.leaky_relu(y, 1 / ctx.slope)
            weight_or_one = torch.ones_like(scales[0]) if weight is None else weight
            means = (torch.zeros_like(scales[0]) if shift is None else shift).expand_as(scales)
            factors, scales = scales * weight_or_one.square(), weight_or_one.reciprocal().expand_as(scales)
        else:
            factors = (torch.ones_like(scales[0]) if weight is None else weight).expand_as(scales)
        parts = [
            torch.ops.aten.native_batch_norm_backward(
                gradient[n : n + 1], x[n : n + 1], factors[n], None, None, means[n], scales[n], True, 0.0, [True, True, True]
            )
            for n in range(len(y))
        ]
        for_x, for_weight, for_shift = zip(*parts, strict=True)
        return (
            for_x[0] if len(y) == 1 else torch.cat(for_x),
            None if ctx.bias is None else torch.zeros_like(ctx.bias),
            None if weight is None else torch.stack(for_weight).sum(0).to(weight.dtype),
            None if shift is None else torch.stack(for_shift).sum(0).to(shift.dtype),
            None,
            None,
        )


def _invertible(x: Tensor, weight: Tensor | None, shift: Tensor | None, slope: float) -> bool:
    """Whether `x` follows from `y` to rounding. Always False on GPUs, where looking at the weights would stall the queue."""
    if x.device.type != "cpu" or slope <= 0:
        return False
    if weight is None:
        return True
    size = weight.detach().abs()
    return bool((size > (1e-6 if shift is None else (shift.detach().abs() / 4).clamp(min=1e-6))).all())
