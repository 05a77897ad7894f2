from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.networks.resnet_translator import ResnetTranslator


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def translator(**options):
    """A small translator whose weights are large enough that every layer counts, with biases that would show."""
    torch.manual_seed(0)
    net = ResnetTranslator(**{"width": 3, "blocks": 2} | options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    return net


def plain(net, images):
    """The translator in the words of its table, with PyTorch's own layers; axes must be multiples of 4."""
    dims = images.ndim - 2
    reflect = {2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d}[dims]
    conv = {2: functional.conv2d, 3: functional.conv3d}[dims]
    transposed = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[dims]

    def norm_relu(x):
        return functional.relu(functional.instance_norm(x))

    x = norm_relu(conv(reflect(3)(images), net.stem.weight, net.stem.bias))
    for down in (net.down1, net.down2):
        x = norm_relu(conv(x, down.weight, down.bias, stride=2, padding=1))
    for block in net.blocks:
        inside = norm_relu(conv(reflect(1)(x), block.conv1.weight, block.conv1.bias))
        x = x + functional.instance_norm(conv(reflect(1)(inside), block.conv2.weight, block.conv2.bias))
    for up in (net.up1, net.up2):
        x = norm_relu(transposed(x, up.weight, up.bias, stride=2, padding=1, output_padding=1))
    return torch.tanh(conv(reflect(3)(x), net.out.weight, net.out.bias))


def reflected(x, axis, n):
    """`x` with `n` mirrored voxels at the end of an axis; the last one is not repeated."""
    last = x.shape[axis] - 1
    return torch.cat([x, *(x.narrow(axis, last - k, 1) for k in range(1, n + 1))], axis)


def test_parameters_of_every_layer():
    """Weights and biases: taps times input times output channels, plus output channels."""
    with torch.device("meta"):
        net = ResnetTranslator()
    assert count(net) == 11_365_633
    assert count(net.stem) == 49 * 64 + 64
    assert [count(net.down1), count(net.down2)] == [9 * 64 * 128 + 128, 9 * 128 * 256 + 256]
    assert [count(block) for block in net.blocks] == [2 * (9 * 256 * 256 + 256)] * 9
    assert [count(net.up1), count(net.up2)] == [9 * 256 * 128 + 128, 9 * 128 * 64 + 64]
    assert count(net.out) == 49 * 64 + 1


def test_channels_blocks_and_axes_are_arguments():
    with torch.device("meta"):
        assert count(ResnetTranslator(blocks=6)) == 11_365_633 - 3 * 2 * (9 * 256 * 256 + 256)
        net = ResnetTranslator(2, 3, width=4, blocks=1, dims=3)
        assert net(torch.empty(1, 2, 16, 12, 20)).shape == (1, 3, 16, 12, 20)
        assert ResnetTranslator()(torch.empty(2, 1, 256, 256)).shape == (2, 1, 256, 256)


@pytest.mark.parametrize(("dims", "size", "batch"), [(2, (32, 32), 1), (2, (12, 20), 2), (2, (8, 8), 1), (3, (8, 12, 16), 1)])
def test_equals_the_plain_form(dims, size, batch):
    net, images = translator(dims=dims).double(), torch.randn(batch, 1, *size, dtype=torch.double, requires_grad=True)
    ours, theirs = net(images), plain(net, images)
    torch.testing.assert_close(ours, theirs)
    given, direction = [images, *net.parameters()], torch.randn_like(theirs)
    for one, two in zip(
        torch.autograd.grad(ours, given, direction), torch.autograd.grad(theirs, given, direction), strict=True
    ):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("dims", "size"), [(2, (13, 18)), (2, (5, 7)), (2, (8, 9)), (3, (5, 6, 9))])
def test_other_sizes_are_reflected_and_cut_back(dims, size):
    net, images = translator(dims=dims).double(), torch.randn(2, 1, *size, dtype=torch.double)
    whole = images
    for axis, n in enumerate(size, start=2):
        whole = reflected(whole, axis, -n % 4)
    expected = plain(net, whole)[(..., *(slice(n) for n in size))]
    torch.testing.assert_close(net(images), expected)


def test_translations_are_images():
    """In [-1, 1], and in single precision under autocast, too."""
    net, images = translator(), torch.rand(2, 1, 16, 16) * 2 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = net(images)
    exact = net(images)
    assert rounded.dtype == exact.dtype == torch.float32
    assert exact.abs().max() <= 1
    assert (rounded - exact).abs().mean() < 0.1


def test_a_batch_is_its_parts():
    net, images = translator().eval(), torch.randn(3, 1, 16, 12)
    torch.testing.assert_close(net(images), torch.cat([net(image[None]) for image in images]))


def test_every_weight_learns_and_biases_before_norms_rest():
    net = translator()
    net(torch.randn(1, 1, 16, 16)).square().mean().backward()
    for name, parameter in net.named_parameters():
        rests = name.endswith("bias") and name != "out.bias"
        assert (parameter.grad.abs().sum() == 0) == rests, name


def test_dropout_acts_in_training_only_and_follows_the_seed():
    net, images = translator(dropout=0.5), torch.randn(1, 1, 16, 16)

    def seeded(seed):
        torch.manual_seed(seed)
        return net(images)

    assert torch.equal(seeded(1), seeded(1))
    assert not torch.equal(seeded(1), seeded(2))
    net.eval()
    assert torch.equal(seeded(1), seeded(2))
    torch.testing.assert_close(net(images), plain(net, images))
    assert all(block.dropout.p == 0 for block in ResnetTranslator(width=2).blocks)


def test_initial_weights():
    torch.manual_seed(0)
    net = ResnetTranslator(width=16, blocks=1)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.003, name


def test_what_it_cannot_read():
    net = ResnetTranslator(width=2, blocks=1)
    with pytest.raises(ModelError, match=r"4x16 voxels are too small for the translator: every axis needs 5 \(choose a larger"):
        net(torch.zeros(1, 1, 4, 16))
    with pytest.raises(ModelError, match="images of 2 channels and 2 axes, the translator reads 1 and 2"):
        net(torch.zeros(1, 2, 16, 16))
    with pytest.raises(ModelError, match="1 channels and 3 axes"):
        net(torch.zeros(1, 1, 16, 16, 16))
