from dataclasses import fields

import pytest
import torch
from torch.nn import functional

from modistill.errors import ModelError
from modistill.networks.blocks import ChannelDropout
from modistill.networks.unet import UNet

BLOCKS = {
    "d1": 31_296,
    "d2": 166_272,
    "d3": 664_320,
    "d4": 2_655_744,
    "c5": 7_080_192,
    "u4": 4_424_832,
    "u3": 1_106_496,
    "u2": 276_768,
    "u1": 83_136,
    "out": 132,
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def plain(net, images):
    """The U-Net in the words of its table: every layer of the module called as it stands, no dropout."""

    def encode(block, x):
        x = functional.leaky_relu(block.norm1(block.conv1(x)), 0.01)
        return functional.leaky_relu(block.norm2(block.conv2(x)), 0.01)

    def decode(block, skip, deep):
        joined = torch.cat([skip, functional.interpolate(deep, skip.shape[2:])], dim=1)
        kernel = torch.cat([block.skip.weight, block.deep.weight], dim=1)
        convolution = functional.conv3d if net.dims == 3 else functional.conv2d
        x = functional.leaky_relu(block.norm1(convolution(joined, kernel, block.deep.bias, padding=1)), 0.01)
        return functional.leaky_relu(block.norm2(block.conv2(x)), 0.01)

    pool = functional.max_pool3d if net.dims == 3 else functional.max_pool2d
    d1 = encode(net.d1, images)
    d2 = encode(net.d2, pool(d1, 2))
    d3 = encode(net.d3, pool(d2, 2))
    d4 = encode(net.d4, pool(d3, 2))
    c5 = encode(net.c5, pool(d4, 2))
    u4 = decode(net.u4, d4, c5)
    u3 = decode(net.u3, d3, u4)
    u2 = decode(net.u2, d2, u3)
    u1 = decode(net.u1, d1, u2)
    return net.out(u1), {"d1": d1, "d2": d2, "d3": d3, "d4": d4, "c5": c5, "u4": u4, "u3": u3, "u2": u2, "u1": u1}


def pair(**options):
    """Two equal networks with norms that are not the identity, so that no term can hide."""
    torch.manual_seed(0)
    nets = [UNet(**{"in_channels": 3, "classes": 4, "width": 4, "dropout": 0.0} | options) for _ in range(2)]
    with torch.no_grad():
        for name, parameter in nets[0].named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    nets[1].load_state_dict(nets[0].state_dict())
    return nets


def test_parameters_of_every_block():
    with torch.device("meta"):
        teacher, student = UNet(in_channels=4, classes=4), UNet(in_channels=3, classes=4)
    assert {name: count(block) for name, block in teacher.named_children()} == BLOCKS
    assert (count(teacher), count(student)) == (16_489_188, 16_488_324)


def test_parameters_have_plain_names_and_shapes():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in UNet(in_channels=4, classes=4).state_dict().items()}
    assert shapes["d1.conv1.weight"] == (32, 4, 3, 3, 3)
    assert shapes["u1.deep.weight"] == (32, 32, 3, 3, 3)
    assert shapes["c5.norm2.bias"] == (256,)
    assert {name.split(".")[1] for name in shapes if name.startswith("u4")} == {"skip", "deep", "norm1", "conv2", "norm2"}


def test_initial_weights():
    net = UNet(in_channels=4, classes=4, width=8)
    weight = net.c5.conv1.weight  # 64 -> 128
    assert weight.std().item() == pytest.approx((2 / (64 * 27)) ** 0.5, rel=0.02)
    assert not any(value.any() for name, value in net.named_parameters() if name.endswith("bias"))
    assert torch.equal(net.d2.norm1.weight, torch.ones(16))


@pytest.mark.parametrize(
    ("dims", "size", "batch"),
    [(3, (32, 32, 48), 1), (3, (33, 35, 47), 1), (3, (16, 32, 17), 2), (2, (64, 96), 1), (2, (33, 47), 3)],
    ids=["even", "odd", "small and odd, batch", "2D", "2D odd, batch"],
)
def test_equals_the_plain_form_through_training(dims, size, batch):
    ours, theirs = (net.double() for net in pair(dims=dims))
    adam = [torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1) for net in (ours, theirs)]
    torch.manual_seed(1)
    for _ in range(3):
        images, labels = torch.randn(batch, 3, *size, dtype=torch.double), torch.randint(4, (batch, *size))
        logits, features = ours.with_features(images)
        expected, maps = plain(theirs, images)
        torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-7)
        for name, value in maps.items():
            torch.testing.assert_close(getattr(features, name), value, rtol=1e-6, atol=1e-7)
        for result, optimizer in zip((logits, expected), adam, strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(result, labels).backward()
            optimizer.step()


@pytest.mark.parametrize(("size", "batch"), [((32, 32, 48), 1), ((33, 35, 47), 1), ((16, 32, 17), 2)])
def test_in_single_precision_it_is_as_exact_as_the_plain_form(size, batch):
    """Both forms against double precision: within 2e-5 of the outputs' scale, and at most three times the plain form's."""
    ours, theirs = pair()
    images = torch.randn(batch, 3, *size)
    truth = plain(pair()[0].double(), images.double())[0]
    with torch.inference_mode():
        mine, other = ((found - truth).abs().max() / truth.abs().max() for found in (ours(images), plain(theirs, images)[0]))
    assert mine < 2e-5
    assert mine < 3 * other + 1e-6


def test_equals_the_plain_form_in_double_precision():
    ours, theirs = (net.double() for net in pair())
    images = torch.randn(1, 3, 33, 32, 34, dtype=torch.double)
    mine, other = ours(images), plain(theirs, images)[0]
    torch.testing.assert_close(mine, other)
    direction = torch.randn_like(other)
    other.backward(direction)
    mine.backward(direction)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-6, atol=1e-8)


def test_weight_decay_reaches_the_biases_that_cancel():
    net = pair()[0]
    before = net.d1.conv1.bias.detach().clone()
    net(torch.randn(1, 3, 32, 32, 32)).sum().backward()
    torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(net.d1.conv1.bias, before * (1 - 0.1 * 0.5))


def test_a_batch_is_its_parts():
    net, images = pair()[0].eval(), torch.randn(2, 3, 32, 33, 32)
    torch.testing.assert_close(net(images), torch.cat([net(images[:1]), net(images[1:])]), rtol=1e-4, atol=1e-4)


def test_which_blocks_drop_channels(monkeypatch):
    drawn = []
    factors = ChannelDropout.factors
    monkeypatch.setattr(ChannelDropout, "factors", lambda self, x: drawn.append(factors(self, x)) or drawn[-1])
    images = torch.randn(1, 3, 32, 32, 32)
    UNet(in_channels=3, classes=2, width=4)(images)
    assert [len(mask[0]) for mask in drawn if mask is not None] == [4, 8, 16, 32, 32, 32, 16, 16, 8, 8, 4, 4]
    drawn.clear()
    UNet(in_channels=3, classes=2, width=3)(images)  # as many modalities as width: the first block drops, too
    assert sum(mask is not None for mask in drawn) == 13


def test_dropout_while_training_only():
    net, images = UNet(in_channels=2, classes=2, width=4), torch.randn(1, 2, 32, 32, 32)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_dropped_channels_have_the_right_share_and_mean():
    torch.manual_seed(0)
    factors = ChannelDropout(0.2).factors(torch.zeros(4, 5000, 1))
    assert set(factors.unique().tolist()) == {0.0, 1.25}
    assert factors.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("batch", [1, 2])
def test_dropout_is_that_of_the_module(batch, monkeypatch):
    """A block with factors folded into its weights equals a block whose input was dropped."""
    block = UNet(in_channels=2, classes=2, width=4).d2
    x, factors = torch.randn(batch, 4, 8, 8, 8), torch.tensor([[0.0, 1.25, 1.25, 0.0], [1.25] * 4])[:batch]
    monkeypatch.setattr(ChannelDropout, "factors", lambda self, x: factors)
    dropped = block(x)
    monkeypatch.setattr(ChannelDropout, "factors", lambda self, x: None)
    torch.testing.assert_close(dropped, block(x * factors[:, :, None, None, None]), rtol=1e-5, atol=1e-5)


def test_bf16_autocast_trains_and_stays_close():
    net, images = pair()[0], torch.randn(1, 3, 32, 32, 32)
    labels = torch.randint(4, (1, 32, 32, 32))
    exact = functional.cross_entropy(net(images), labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images)
    loss = functional.cross_entropy(logits.float(), labels)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_features_detached():
    _, features = pair()[0].with_features(torch.randn(1, 3, 32, 32, 32))
    assert features.u1.requires_grad
    assert not features.detached().u1.requires_grad
    assert torch.equal(features.detached().c5, features.c5)


def test_inner_features_are_those_a_critic_sees():
    _, features = pair()[0].with_features(torch.randn(1, 3, 32, 32, 32))
    inner = features.hierarchy()
    assert [field.name for field in fields(inner)] == ["d2", "d3", "d4", "c5", "u4", "u3"]
    assert inner.c5 is features.c5
    assert sum(getattr(inner, field.name).numel() for field in fields(inner)) < features.d1.numel()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 12, 64, 64), "12x64x64 voxels are too small: every axis needs 16, one of them 32"),
        ((1, 3, 16, 16, 31), "one of them 32"),
        ((1, 4, 32, 32, 32), "4 channels and 3 axes, the network reads 3 and 3"),
        ((1, 3, 32, 32), "3 channels and 2 axes"),
    ],
)
def test_what_it_cannot_read(shape, message):
    with pytest.raises(ModelError, match=message):
        UNet(in_channels=3, classes=2, width=4)(torch.zeros(shape))
