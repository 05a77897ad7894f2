from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from modistill.errors import ModelError
from modistill.networks.nnunet import NNUNet


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def plain(net, images):
    """The network in the words of its table, on images filled up with zeros: logits of all scales, finest first, not cut."""

    def stage(block, x):
        x = functional.leaky_relu(block.norm1(block.conv1(x)), 0.01)
        return functional.leaky_relu(block.norm2(block.conv2(x)), 0.01)

    unit = 2 ** (net.stages - 1)
    sizes = [next(m for m in range(unit, 10 * unit, unit) if m >= n) for n in images.shape[2:]]
    x = images.new_zeros(*images.shape[:2], *sizes)
    x[(slice(None), slice(None), *(slice(n) for n in images.shape[2:]))] = images
    skips, logits = [], []
    for block in net.encoder:
        x = stage(block, x)
        skips.append(x)
    skips.pop()
    for s in range(net.stages - 2, -1, -1):
        x = stage(net.decoder[s], torch.cat([net.up[s](x), skips.pop()], 1))
        logits.insert(0, net.heads[s](x))
    return logits


def network(**options):
    """A small network with norms that are not the identity, so that no term can hide."""
    torch.manual_seed(0)
    net = NNUNet(**{"in_channels": 3, "classes": 4, "width": 3, "stages": 4} | options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


@pytest.mark.parametrize(
    ("in_channels", "classes", "parameters"),
    [(4, 3, 31_198_991), (3, 3, 31_198_127), (2, 3, 31_197_263), (1, 3, 31_196_399), (4, 4, 31_199_796)],
)
def test_parameters_are_nnunets(in_channels, classes, parameters):
    with torch.device("meta"):
        assert count(NNUNet(in_channels, classes)) == parameters


def test_shapes_and_cost_of_nnunets_patch():
    """Heads at 128, 64, 32, 16 and 8 voxels, 320x4x4x4 at the bottom, 482.8 G multiplications and additions."""
    with torch.device("meta"):
        net, images = NNUNet(4, 3), torch.empty(1, 4, 128, 128, 128)
    found = []
    net.encoder[-1].register_forward_hook(lambda module, given, result: found.append(result.shape))
    with FlopCounterMode(display=False) as counter:
        logits = net.at_all_scales(images)
    assert [tuple(one.shape) for one in logits] == [(1, 3, n, n, n) for n in (128, 64, 32, 16, 8)]
    assert found == [(1, 320, 4, 4, 4)]
    assert counter.get_total_flops() / 2 == pytest.approx(482.8e9, rel=1e-3)


def test_channels_are_bounded():
    with torch.device("meta"):
        for dims, widest in ((3, [32, 64, 128, 256, 320, 320, 320]), (2, [32, 64, 128, 256, 512, 512, 512])):
            assert [stage.conv2.out_channels for stage in NNUNet(1, 2, dims=dims, stages=7).encoder] == widest


def test_initial_weights():
    """Kaiming's for a slope of 0.01: variance 2 / (1 + 0.01^2) / fan in. Biases zero, norms the identity."""
    net = NNUNet(in_channels=2, classes=3, width=8, stages=4)
    assert net.encoder[3].conv2.weight.std().item() == pytest.approx((2 / 1.0001 / (64 * 27)) ** 0.5, rel=0.02)
    assert net.up[2].weight.std().item() == pytest.approx((2 / 1.0001 / (32 * 8)) ** 0.5, rel=0.02)
    assert not any(value.any() for name, value in net.named_parameters() if name.endswith("bias"))
    assert torch.equal(net.decoder[0].norm1.weight, torch.ones(8))


@pytest.mark.parametrize(
    ("dims", "size", "batch"),
    [(3, (16, 24, 32), 1), (3, (17, 16, 23), 1), (3, (5, 16, 16), 2), (2, (32, 48), 2), (2, (19, 45), 3)],
    ids=["even", "odd", "small, batch", "2D", "2D odd, batch"],
)
def test_equals_the_plain_form(dims, size, batch):
    net = network(dims=dims).double()
    images = torch.randn(batch, 3, *size, dtype=torch.double)
    ours, theirs = net.at_all_scales(images), plain(net, images)
    for s, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        cut = tuple(slice(-(-n // 2**s)) for n in size)  # size / 2^s, rounded up
        theirs[s] = other[(..., *cut)]
        torch.testing.assert_close(mine, theirs[s])
    assert torch.equal(net(images), ours[0])
    directions = [torch.randn_like(one) for one in theirs]
    mine = torch.autograd.grad(ours, list(net.parameters()), directions)
    other = torch.autograd.grad(theirs, list(net.parameters()), directions)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_a_batch_is_its_parts():
    net, images = network().eval(), torch.randn(2, 3, 16, 17, 16)
    torch.testing.assert_close(net(images), torch.cat([net(images[:1]), net(images[1:])]), rtol=1e-4, atol=1e-4)


def test_a_single_voxel_is_enough():
    """What is too small is filled up: the lowest stage has two voxels at least, and its norms a variance."""
    net, found = network(dims=2), []
    net.encoder[-1].register_forward_hook(lambda module, given, result: found.append(tuple(result.shape[2:])))
    for size, lowest in (((1, 1), (1, 2)), ((8, 8), (1, 2)), ((9, 3), (2, 1)), ((16, 17), (2, 3))):
        assert net(torch.randn(1, 3, *size)).shape == (1, 4, *size)
        assert found.pop() == lowest


def test_bf16_autocast_trains_and_stays_close():
    net, images, labels = network(), torch.randn(1, 3, 32, 32, 32), torch.randint(4, (1, 32, 32, 32))
    exact = functional.cross_entropy(net(images), labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net.at_all_scales(images)
    loss = functional.cross_entropy(logits[0].float(), labels)
    loss.backward()
    assert all(one.dtype == torch.bfloat16 for one in logits)
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in net.decoder.parameters())


def test_no_dropout_and_no_running_statistics():
    net, images = network(), torch.randn(1, 3, 16, 16, 16)
    assert torch.equal(net.train()(images), net.eval()(images))
    assert not list(net.buffers())
    assert not any(isinstance(module, nn.Dropout) for module in net.modules())


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 4, 32, 32, 32), "4 channels and 3 axes, the network reads 3 and 3"), ((1, 3, 32, 32), "3 channels and 2 axes")],
)
def test_what_it_cannot_read(shape, message):
    with pytest.raises(ModelError, match=message):
        network()(torch.zeros(shape))


def test_one_stage_is_no_u():
    with pytest.raises(ValueError, match="stages is 1, 2 or more are needed"):
        NNUNet(3, 4, stages=1)
