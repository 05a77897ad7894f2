"""MRRN against its table, in both wirings, and against its steps written out one after the other."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from modistill.networks.mrrn import MRRN
from plain_forms import check_against, count, shaken

VARIANTS = ["published", "fixed"]


def plain(net, images):
    """The network as its table says, step by step, without dropout: logits, and the maps of all sites."""
    is_3d = images.ndim == 5
    convolution = functional.conv3d if is_3d else functional.conv2d
    pool = functional.max_pool3d if is_3d else functional.max_pool2d

    def resize(x, size):
        mode = "trilinear" if is_3d else "bilinear"
        factor = size[0] // x.shape[2]
        if all(n == factor * m for n, m in zip(size, x.shape[2:], strict=True)):
            return functional.interpolate(x, scale_factor=factor, mode=mode, align_corners=net.align_corners)
        return functional.interpolate(x, size=size, mode=mode, align_corners=net.align_corners)

    def cnn(module, x):
        x, norm = convolution(x, module.conv.weight, module.conv.bias, padding=1), module.norm
        over = (0, *range(2, x.ndim))
        mean, variance = (x.mean(over), x.var(over, unbiased=False)) if net.training else (norm.running_mean, norm.running_var)
        mean, variance, weight, shift = (
            one.reshape(1, -1, *(1,) * (x.ndim - 2)) for one in (mean, variance, norm.weight, norm.bias)
        )
        return ((x - mean) / (variance + 1e-5).sqrt() * weight + shift).clamp(min=0)

    def ru(module, x):
        return x + cnn(module.unit, x)

    def rcu(module, residual, x, scale):
        p = cnn(module.conv2, cnn(module.conv1, torch.cat([pool(residual, scale), x], 1)))
        change = convolution(p, module.adjust.weight, module.adjust.bias)
        return residual + resize(change, residual.shape[2:]), p

    fixed = net.variant == "fixed"
    low0 = cnn(net.stem[0], images)
    low1 = ru(net.stem[1], low0)
    x = ru(net.stem[3], ru(net.stem[2], low1))
    r1 = convolution(x, net.split.weight, net.split.bias).clamp(min=0)

    x, u = pool(x, 2), net.down[0].units
    r1, x = rcu(u[0], r1, x, 2)
    r1, x = rcu(u[1], r1, x, 2)
    r1, x = rcu(u[2], r1, x, 2)
    r2 = x

    x, u = pool(x, 2), net.down[1].units
    r1, x = rcu(u[0], r1, x, 4)
    r2, x = rcu(u[1], r2, x, 2)
    r1, x = rcu(u[2], r1, x, 4)
    r3 = x

    x, u = pool(x, 2), net.down[2].units
    r1, x = rcu(u[0], r1, x, 8)
    r3, x = rcu(u[1], r3, x, 2)
    r2, x = rcu(u[2], r2, x, 4)
    r1, x = rcu(u[3], r1, x, 8)
    r4 = x

    x, u = pool(x, 2), net.down[3].units
    r1, x = rcu(u[0], r1, x, 16)
    r4, x = rcu(u[1], r4, x, 2)
    r3, x = rcu(u[2], r3, x, 4)
    r2, x = rcu(u[3], r2, x, 8)
    r1, x = rcu(u[4], r1, x, 16)
    mid = x

    x, u = resize(x, r4.shape[2:]), net.up[0].units
    r1, x = rcu(u[0], r1, x, 8)
    r3, x = rcu(u[1], r3, x, 2)
    r2, x = rcu(u[2], r2, x, 4)
    r1, x = rcu(u[3], r1, x, 8)
    x = x + r4 if fixed else x

    x, u = resize(x, r3.shape[2:]), net.up[1].units
    r1, x = rcu(u[0], r1, x, 4)
    r2, x = rcu(u[1], r2, x, 2)
    r1, x = rcu(u[2], r1, x, 4)
    x = x + r3 if fixed else x

    hint1, u = resize(x, r2.shape[2:]), net.up[2].units
    r1, x = rcu(u[0], r1, hint1 if fixed else r2, 2)
    r1, x = rcu(u[1], r1, x, 2)
    r1, x = rcu(u[2], r1, x, 2)
    x = x + r2 if fixed else x
    up1 = x

    hint2 = resize(x, r1.shape[2:])
    x = cnn(net.merge[0], torch.cat([hint2, r1], 1))
    x = ru(net.merge[3], ru(net.merge[2], ru(net.merge[1], x)))
    return net.out(x), {"low": (low0, low1), "mid": (mid,), "high": (hint1, hint2), "high_outputs": (up1, x)}


@pytest.mark.parametrize(
    ("classes", "variant", "parameters"),
    [(2, "published", 38_916_418), (7, "published", 38_916_583), (2, "fixed", 38_953_282)],
)
def test_parameters_are_the_published_ones(classes, variant, parameters):
    with torch.device("meta"):
        assert count(MRRN(1, classes, variant=variant)) == parameters


def test_what_the_units_read_and_change():
    """For every unit: channels of the concatenation, of the convolutions, and of the residual stream."""
    with torch.device("meta"):
        net = MRRN(1, 2)
    levels = [
        [(u.conv1.conv.in_channels, u.conv1.conv.out_channels, u.adjust.out_channels, u.scale) for u in level.units]
        for level in (*net.down, *net.up)
    ]
    assert levels == [
        [(64, 64, 32, 2), (96, 64, 32, 2), (96, 64, 32, 2)],
        [(96, 128, 32, 4), (192, 128, 64, 2), (160, 128, 32, 4)],
        [(160, 256, 32, 8), (384, 256, 128, 2), (320, 256, 64, 4), (288, 256, 32, 8)],
        [(288, 512, 32, 16), (768, 512, 256, 2), (640, 512, 128, 4), (576, 512, 64, 8), (544, 512, 32, 16)],
        [(544, 256, 32, 8), (384, 256, 128, 2), (320, 256, 64, 4), (288, 256, 32, 8)],
        [(288, 128, 32, 4), (192, 128, 64, 2), (160, 128, 32, 4)],
        [(96, 64, 32, 2), (96, 64, 32, 2), (96, 64, 32, 2)],
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_have_the_published_sizes(variant):
    with torch.device("meta"):
        net, images = MRRN(1, 2, variant=variant), torch.empty(2, 1, 256, 256)
    shapes = {at: [tuple(hint.shape) for hint in net.with_hints(images, at)[1]] for at in net.sites}
    assert shapes == {
        "low": [(2, 32, 256, 256), (2, 32, 256, 256)],
        "mid": [(2, 512, 16, 16)],
        "high": [(2, 128, 128, 128), (2, 64, 256, 256)],
        "high_outputs": [(2, 64, 128, 128), (2, 32, 256, 256)],
    }


@pytest.mark.parametrize(("variant", "idle"), [("published", 164_224), ("fixed", 0)])
def test_parameters_without_gradient(variant, idle):
    """512 x 256 + 256 that would update R4, and 256 x 128 + 128 that would update R3."""
    with torch.device("meta"):
        net = MRRN(1, 2, variant=variant)
        logits, hints = net.with_hints(torch.empty(2, 1, 32, 32))
        sum(x.sum() for x in (logits, *hints)).backward()
    without = {name: p.numel() for name, p in net.named_parameters() if p.grad is None}
    assert sum(without.values()) == idle
    assert set(without) <= {
        f"{unit}.adjust.{kind}" for unit in ("down.3.units.1", "up.0.units.1") for kind in ("weight", "bias")
    }


def test_in_the_fixed_wiring_every_weight_learns_something():
    net = MRRN(1, 2, width=4, variant="fixed")
    net(torch.randn(2, 1, 32, 48)).square().mean().backward()
    assert all(p.grad.any() for p in net.parameters() if p.ndim > 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_whether_the_hints_are_on_the_way_to_the_logits(variant):
    net = MRRN(1, 2, width=4, variant=variant)
    images = torch.randn(2, 1, 32, 32)
    for at in ("high", "high_outputs"):
        logits, hints = net.with_hints(images, at)
        found = torch.autograd.grad(logits.sum(), hints, allow_unused=True)
        on_the_way = [gradient is not None for gradient in found]
        assert on_the_way == [not (at == "high" and variant == "published"), True]


def test_what_the_first_published_hint_teaches():
    """Nothing behind up 2."""
    net = MRRN(1, 2, width=4)
    net.with_hints(torch.randn(2, 1, 32, 32))[1][0].square().mean().backward()
    taught = {name.rsplit(".units", 1)[0] for name, p in net.named_parameters() if p.grad is not None and "units" in name}
    assert taught == {"down.0", "down.1", "down.2", "down.3", "up.0", "up.1"}
    assert all(p.grad is None for module in (net.up[2], net.merge, net.out) for p in module.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("size", "batch", "align_corners"),
    [((32, 48), 2, False), ((32, 48), 2, True), ((33, 47), 2, False), ((16, 38), 3, True)],
    ids=["even", "even, aligned", "odd", "small, aligned"],
)
def test_equals_the_plain_form(size, batch, align_corners, variant):
    net = shaken(MRRN(2, 3, width=4, variant=variant, align_corners=align_corners)).double()
    images = torch.randn(batch, 2, *size, dtype=torch.double)
    check_against(plain, net, images, idle=True)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(16, 16, 32), (17, 19, 33)], ids=["even", "odd"])
def test_equals_the_plain_form_in_3d(size, variant):
    """With the running statistics, in single precision."""
    net, images = shaken(MRRN(2, 3, width=4, dims=3, variant=variant)).eval(), torch.randn(1, 2, *size)
    with torch.inference_mode():
        expected, maps = plain(net, images)
        logits, hints = net.with_hints(images)
    for one, two in zip((logits, *hints), (expected, *maps["high"]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_dropout_is_of_the_pooled_residual_streams():
    """In a unit whose residual stream falls altogether, only the feature stream is left to read."""
    unit = MRRN(1, 2, width=4, dropout=1 - 1e-9).down[1].units[1]
    p, r = torch.randn(2, 16, 4, 4), torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        q, _ = unit(p, r)
        expected = unit.conv2(unit.conv1(torch.zeros(2, 8, 4, 4), p))
    torch.testing.assert_close(q, expected)


def test_initial_weights():
    """Kaiming's: variance 2 / fan in. Biases zero, norms the identity."""
    net = MRRN(1, 2, width=8)
    assert net.down[3].units[1].conv1.conv.weight.std().item() == pytest.approx((2 / (192 * 9)) ** 0.5, rel=0.02)
    assert torch.equal(net.merge[0].norm.weight, torch.ones(8))
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_an_unknown_variant():
    with pytest.raises(ValueError, match="variant is 'repaired', it must be published or fixed"):
        MRRN(1, 2, variant="repaired")
