"""What the machine's kernels get wrong, and how training stays clear of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modistill.hardware import SoundConvolutions


def gradient_of_weights(convolution: Callable[..., Tensor], x: Tensor, weight: Tensor, along: Tensor, stride: int) -> Tensor:
    """Gradient of <convolution(x, weight), along>, with freed memory full of NaN for a kernel that reads what it should not."""
    weight = weight.clone().requires_grad_()
    y = convolution(x, weight, None, stride, 1)
    poison = [torch.full((2**n,), torch.nan) for n in (12, 14, 16, 20)]
    del poison
    (gradient,) = torch.autograd.grad(y, weight, along.to(y.dtype))
    return gradient.float()


@pytest.mark.parametrize(
    ("convolution", "channels", "size", "taps", "stride"),
    [
        (functional.conv3d, (256, 1), (3, 3, 2), 4, 1),
        (functional.conv3d, (64, 64), (2, 8, 8), 3, 1),
        (functional.conv3d, (256, 16), (8, 2, 8), 4, 2),
        (functional.conv_transpose3d, (16, 4), (7, 1, 5), 4, 2),
    ],
)
def test_bf16_gradients_of_small_maps_are_right(
    convolution: Callable[..., Tensor], channels: tuple[int, int], size: tuple[int, ...], taps: int, stride: int
) -> None:
    torch.manual_seed(0)
    into, out = channels
    x = torch.randn(1, into, *size).contiguous(memory_format=torch.channels_last_3d)
    transposed = convolution is functional.conv_transpose3d
    weight = 0.01 * torch.randn(*((into, out) if transposed else (out, into)), taps, taps, taps)
    along = torch.randn_like(convolution(x, weight, None, stride, 1))
    expected = gradient_of_weights(convolution, x, weight, along, stride)
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16), SoundConvolutions():
            found = gradient_of_weights(convolution, x, weight, along, stride)
        assert (found - expected).abs().max() <= 0.01 * expected.abs().max()


def test_the_type_is_the_one_autocast_gives_and_large_maps_are_left_alone() -> None:
    x, weight = torch.randn(1, 4, 6, 6, 6), torch.randn(4, 4, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        plain = functional.conv3d(x, weight, padding=1)
        with SoundConvolutions():
            sound, small = functional.conv3d(x, weight, padding=1), functional.conv3d(x[..., :2], weight, padding=1)
    assert torch.equal(plain, sound)
    assert small.dtype == plain.dtype == torch.bfloat16
    with SoundConvolutions():
        assert functional.conv3d(x[..., :3], weight).dtype == torch.float32
