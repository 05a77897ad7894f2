"""Every identity against the words it stands for, values and gradients, in double precision."""

import pytest
import torch
from torch.nn import functional

from modistill.networks.convolution import (
    CONVOLUTION,
    channels_last,
    convolve,
    convolve_concatenated,
    convolve_resized,
    drop_channels,
    max_pool,
    mix_channels,
)


def plain(x, weight, stride=1):
    return (functional.conv3d if x.ndim == 5 else functional.conv2d)(x, weight, None, stride, 1)


def random(*shape):
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def assert_same(ours, theirs, inputs):
    """Equal values, and equal gradients for a random direction."""
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(theirs, inputs, direction), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (4, 2)])
@pytest.mark.parametrize("grow", ["double", "double and one", "same", "mixed"])
@pytest.mark.parametrize("order", ["plain", "channels last"])
def test_resized_then_convolved(dims, taps, stride, grow, order):
    small = (3, 4, 5)[:dims]
    size = {
        "double": [2 * n for n in small],
        "double and one": [2 * n + 1 for n in small],
        "same": small,
        "mixed": [2 * small[0], *(2 * n + 1 for n in small[1:])],
    }[grow]
    x, weight = random(2, 3, *small), random(4, 3, *(taps,) * dims)
    given = channels_last(x) if order == "channels last" else x
    expected = plain(functional.interpolate(x, tuple(size)), weight, stride)
    assert_same(convolve_resized(given, weight, size, stride=stride), expected, [x, weight])


@pytest.mark.parametrize("width", [3, 90], ids=["small", "large"])
@pytest.mark.parametrize("stride", [1, 2])
def test_small_maps_of_single_precision(width, stride):
    """One small sample takes another road on CPUs (see `_left_to_slow_kernel`): same values, same gradients."""
    x, weight, bias = (
        t.detach().float().requires_grad_() for t in (random(1, 4, width, 60, 3), random(2, 4, 3, 3, 3), random(2))
    )
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    ours, theirs = convolve(channels_last(x), weight, bias, stride=stride), functional.conv3d(*exact, stride, 1)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)
    for mine, other in zip(
        torch.autograd.grad(ours.square().sum(), [x, weight, bias]),
        torch.autograd.grad(theirs.square().sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-2)


def test_one_axis_by_hand():
    # Upsampled: 1 1 2 2, convolved with (1, 10, 100): each output reads its neighbours, zeros beyond the ends.
    x = torch.tensor([1.0, 2.0]).reshape(1, 1, 2, 1).expand(1, 1, 2, 2)
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, :, 1] = torch.tensor([1.0, 10.0, 100.0])
    assert convolve_resized(x, weight, (4, 4))[0, 0, :, 0].tolist() == [110.0, 211.0, 221.0, 22.0]


@pytest.mark.parametrize("dims", [2, 3])
def test_concatenated(dims):
    size = (6,) * dims
    parts = [random(2, 2, *size), random(2, 3, *size), random(2, 1, *(3,) * dims)]
    weight, bias = random(5, 6, *(4,) * dims), random(5)
    joined = torch.cat([functional.interpolate(part, size) for part in parts], dim=1)
    expected = plain(joined, weight, 2) + bias.reshape(-1, *(1,) * dims)
    assert_same(convolve_concatenated(parts, weight, bias, stride=2), expected, [*parts, weight, bias])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("out", "joined"), [(1, False), (40, True)])  # 160 numbers of maps in 2-D, 45 or 1,800 of weights
def test_concatenated_without_resizing(dims, stride, out, joined, monkeypatch):
    """Larger maps are never copied; weights that are larger than the maps are not, either."""
    parts = [random(2, 2, *(4,) * dims), random(2, 3, *(4,) * dims)]
    weight, bias = random(out, 5, *(3,) * dims), random(out)
    expected = plain(torch.cat(parts, 1), weight, stride) + bias.reshape(-1, *(1,) * dims)
    copies = []
    monkeypatch.setattr(torch, "cat", lambda tensors, axis, cat=torch.cat: copies.append(axis) or cat(tensors, axis))
    assert_same(convolve_concatenated(parts, weight, bias, stride=stride), expected, [*parts, weight, bias])
    assert bool(copies) == joined


@pytest.mark.parametrize("out", [1, 40])
def test_a_part_without_gradient_gets_none(out):
    still, moving = random(1, 2, 6, 6).detach(), random(1, 2, 6, 6)
    convolve_concatenated([still, moving], random(out, 4, 4, 4), stride=2).sum().backward()
    assert still.grad is None
    assert moving.grad is not None


@pytest.mark.parametrize("batch", [1, 3])
def test_dropped_channels(batch):
    x, weight = random(batch, 4, 5, 5), random(2, 4, 3, 3)
    factors = torch.tensor([[0.0, 1.25, 1.25, 0.0], [1.25, 0.0, 1.25, 1.25], [0.0] * 4])[:batch]
    expected = plain(x * factors[..., None, None], weight)
    assert_same(convolve(*drop_channels(x, weight, factors)), expected, [x, weight])
    assert drop_channels(x, weight, None) == (x, weight)


@pytest.mark.parametrize("dims", [2, 3])
def test_mixed_channels(dims):
    x, out = random(2, 3, *(4,) * dims), CONVOLUTION[dims](3, 2, 1).double()
    assert_same(mix_channels(channels_last(x), out.weight, out.bias), out(x), [x, out.weight, out.bias])


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_is_the_same_tensor_in_another_order(dims):
    x = random(2, 3, *(4,) * dims)
    assert torch.equal(channels_last(x), x)
    assert channels_last(x).stride(1) == 1


def test_pooling_leaves_an_odd_last_voxel_out():
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    assert max_pool(x).tolist() == [[[[6.0, 8.0]]]]
    assert max_pool(x.reshape(1, 1, 3, 5, 1).expand(1, 1, 3, 5, 2)).tolist() == [[[[[6.0], [8.0]]]]]


def test_merged_taps_under_autocast():
    x, weight = torch.ones(1, 1, 2, 2, 2), torch.full((1, 1, 4, 4, 4), 1 / 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve_resized(x, weight, (4, 4, 4), stride=2)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), plain(torch.ones(1, 1, 4, 4, 4), weight, 2), rtol=1e-2, atol=0)
