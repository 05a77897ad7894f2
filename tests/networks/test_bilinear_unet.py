"""CMEDL's U-Net against its table, and against its layers written out one after the other."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from modistill.networks.bilinear_unet import BilinearUNet
from plain_forms import check_against, count


def shaken(net):
    """With norms and biases that are not the identity, so that no term can hide; in double precision."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim > 1 else 0.3))
    return net.double()


def plain(net, images):
    """The U-Net as its table says, in training mode: logits, and the maps of all sites by name."""
    convolution, pool = (
        (functional.conv2d, functional.max_pool2d) if images.ndim == 4 else (functional.conv3d, functional.max_pool3d)
    )
    mode, align_corners = "bilinear" if images.ndim == 4 else "trilinear", net.align_corners

    def unit(module, x):
        x = convolution(x, module.conv.weight, module.conv.bias, padding=1)
        over = (0, *range(2, x.ndim))
        mean, variance = x.mean(over, keepdim=True), x.var(over, unbiased=False, keepdim=True)
        weight, shift = (one.reshape(1, -1, *(1,) * (x.ndim - 2)) for one in (module.norm.weight, module.norm.bias))
        return ((x - mean) / (variance + 1e-5).sqrt() * weight + shift).clamp(min=0)

    def block(module, x):
        return unit(module.conv2, unit(module.conv1, x))

    def up(module, skip, x):
        if all(n == 2 * m for n, m in zip(skip.shape[2:], x.shape[2:], strict=True)):
            x = functional.interpolate(x, scale_factor=2, mode=mode, align_corners=align_corners)
        else:
            x = functional.interpolate(x, size=skip.shape[2:], mode=mode, align_corners=align_corners)
        return block(module, torch.cat([skip, x], 1))

    c1 = unit(net.inc.conv1, images)
    x1 = unit(net.inc.conv2, c1)
    x2 = block(net.down[0], pool(x1, 2))
    x3 = block(net.down[1], pool(x2, 2))
    x4 = block(net.down[2], pool(x3, 2))
    x5 = block(net.down[3], pool(x4, 2))
    u1 = up(net.up[0], x4, x5)
    u2 = up(net.up[1], x3, u1)
    u3 = up(net.up[2], x2, u2)
    u4 = up(net.up[3], x1, u3)
    return net.out(u4), {"low": (c1, x1), "mid": (x5,), "high": (u3, u4)}


@pytest.mark.parametrize(("in_channels", "classes", "parameters"), [(1, 2, 13_394_242), (1, 1, 13_394_177), (3, 2, 13_395_394)])
def test_parameters_are_the_published_ones(in_channels, classes, parameters):
    with torch.device("meta"):
        assert count(BilinearUNet(in_channels, classes)) == parameters


def test_parameters_of_every_block():
    """By hand: a block of a -> b -> b has 9 a b + b, 9 b b + b and 4 b of its norms."""
    with torch.device("meta"):
        net = BilinearUNet(1, 2)
    blocks = [net.inc, *net.down, *net.up]
    widths = [(1, 64), (64, 128), (128, 256), (256, 512), (512, 512), (1024, 256), (512, 128), (256, 64), (128, 64)]
    assert [count(block) for block in blocks] == [9 * a * b + b + 9 * b * b + b + 4 * b for a, b in widths]
    assert count(net.out) == 130


def test_maps_have_the_published_sizes():
    with torch.device("meta"):
        net, images = BilinearUNet(1, 2), torch.empty(2, 1, 256, 256)
    shapes = {at: [tuple(hint.shape) for hint in net.with_hints(images, at)[1]] for at in net.sites}
    assert shapes == {
        "low": [(2, 64, 256, 256), (2, 64, 256, 256)],
        "mid": [(2, 512, 16, 16)],
        "high": [(2, 64, 128, 128), (2, 64, 256, 256)],
    }


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("size", "batch"),
    [((32, 48), 2), ((33, 47), 2), ((16, 34), 3), ((32, 16, 16), 1), ((17, 16, 35), 2)],
    ids=["even", "odd", "small", "3D", "3D odd"],
)
def test_equals_the_plain_form(size, batch, align_corners):
    net = shaken(BilinearUNet(2, 3, width=4, dims=len(size), align_corners=align_corners))
    images = torch.randn(batch, 2, *size, dtype=torch.double)
    check_against(plain, net, images)


def test_a_high_hint_teaches_all_but_the_last_convolution():
    net = BilinearUNet(1, 2, width=4)
    _, (_, last) = net.with_hints(torch.randn(2, 1, 32, 32))
    last.square().mean().backward()
    assert net.out.weight.grad is None
    assert all(p.grad.any() for name, p in net.named_parameters() if name.endswith("conv.weight"))


def test_initial_weights():
    """PSIGAN's: N(0, 0.02) for convolutions, N(1, 0.02) for the scales of norms, zero for all that is added."""
    net = BilinearUNet(1, 2, width=16)
    assert net.down[3].conv2.conv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(net.down[3].conv2.conv.weight.mean().item()) < 1e-3
    scales = torch.cat([p for name, p in net.named_parameters() if name.endswith("norm.weight")])
    assert len(scales) == 2 * 16 * (1 + 2 + 4 + 8 + 8 + 4 + 2 + 1 + 1)
    assert scales.std().item() == pytest.approx(0.02, rel=0.1)
    assert scales.mean().item() == pytest.approx(1, abs=3e-3)
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_hints_of_fresh_networks_differ_by_a_good_half():
    """Two of them on smooth noise: the mean squared differences of the last two maps add up to 0.69 at the full width."""
    image = functional.interpolate(torch.randn(2, 1, 8, 8), (64, 64), mode="bicubic")
    with torch.no_grad():
        first, second = (BilinearUNet(1, 2, width=16).with_hints(image)[1] for _ in range(2))
    apart = [(one - other).square().mean().item() for one, other in zip(first, second, strict=True)]
    assert sum(apart) > 0.3


def test_the_first_block_drops_nothing():
    """Or a modality would be lost by chance."""
    net = BilinearUNet(2, 3, width=4, dropout=1.0 - 1e-9)
    _, (first, inc) = net.with_hints(torch.randn(1, 2, 32, 32), "low")
    assert first.any()
    assert inc.any()
    assert [block.dropout.p for block in (*net.down, *net.up)] == [1.0 - 1e-9] * 8
