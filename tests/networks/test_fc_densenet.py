"""FC-DenseNet57 against its table, and against its layers written out one after the other."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from modistill.networks.fc_densenet import FCDenseNet
from plain_forms import check_against, count, shaken


def plain(net, images):
    """The network as its table says, without dropout: logits, and the maps of all sites."""
    is_3d = images.ndim == 5
    convolution = functional.conv3d if is_3d else functional.conv2d
    transposed = functional.conv_transpose3d if is_3d else functional.conv_transpose2d
    pool = functional.max_pool3d if is_3d else functional.max_pool2d

    def activated(norm, x):
        over = (0, *range(2, x.ndim))
        mean, variance = (x.mean(over), x.var(over, unbiased=False)) if net.training else (norm.running_mean, norm.running_var)
        mean, variance, weight, shift = (
            one.reshape(1, -1, *(1,) * (x.ndim - 2)) for one in (mean, variance, norm.weight, norm.bias)
        )
        return ((x - mean) / (variance + 1e-5).sqrt() * weight + shift).clamp(min=0)

    def dense(block, x):
        """Everything a block has: its input and what its layers have grown; and what its last layer reads."""
        for layer in block.layers:
            read = x
            x = torch.cat([x, convolution(activated(layer.norm, x), layer.conv.weight, layer.conv.bias, padding=1)], 1)
        return x, read

    def down(transition, x):
        return pool(convolution(activated(transition.norm, x), transition.conv.weight, transition.conv.bias), 2)

    def up(layer, x, skip):
        x = transposed(x, layer.weight, layer.bias, stride=2)
        starts = [(n - m) // 2 for n, m in zip(x.shape[2:], skip.shape[2:], strict=True)]  # cut around the centre
        x = x[(..., *(slice(start, start + m) for start, m in zip(starts, skip.shape[2:], strict=True)))]
        return torch.cat([x, skip], 1)

    x = first = convolution(images, net.first.weight, net.first.bias, padding=1)
    skips = []
    for block, transition in zip(net.down, net.transition_down, strict=True):
        x, _ = dense(block, x)
        skips.append(x)
        x = down(transition, x)
    x = bottleneck = dense(net.bottleneck, x)[0][:, x.shape[1] :]
    wholes, reads = [], []
    for block, layer, skip in zip(net.up, net.transition_up, skips[::-1], strict=True):
        x = up(layer, x, skip)
        whole, read = dense(block, x)
        wholes.append(whole)
        reads.append(read)
        x = whole[:, x.shape[1] :]
    return net.out(wholes[4]), {
        "low": (first, skips[0]),
        "mid": (bottleneck,),
        "high": (reads[3], wholes[4]),
        "high_symmetric": (wholes[3], wholes[4]),
    }


@pytest.mark.parametrize(("in_channels", "classes", "parameters"), [(1, 2, 1_374_194), (3, 1, 1_374_865)])
def test_parameters_are_the_published_ones(in_channels, classes, parameters):
    with torch.device("meta"):
        assert count(FCDenseNet(in_channels, classes)) == parameters


def test_layers_are_as_many_as_the_papers_but_one():
    """56 convolutions and 49 norms: 105 layers with learned weights, where CMEDL counts 106."""
    with torch.device("meta"):
        net = FCDenseNet(1, 2)
    assert sum(p.ndim > 1 for p in net.parameters()) == 56
    assert sum(name.endswith("norm.weight") for name, _ in net.named_parameters()) == 49


def test_what_the_layers_read():
    with torch.device("meta"):
        net = FCDenseNet(1, 2)
    assert [layer.conv.in_channels for layer in net.up[3].layers] == [192, 204, 216, 228]
    assert [layer.conv.in_channels for layer in net.up[4].layers] == [144, 156, 168, 180]
    assert [block.layers[0].conv.in_channels for block in net.down] == [48, 96, 144, 192, 240]
    assert [block.layers[0].conv.in_channels for block in net.up] == [336, 288, 240, 192, 144]


def test_maps_have_the_published_sizes():
    with torch.device("meta"):
        net, images = FCDenseNet(1, 2), torch.empty(2, 1, 256, 256)
    shapes = {at: [tuple(hint.shape) for hint in net.with_hints(images, at)[1]] for at in net.sites}
    assert shapes == {
        "low": [(2, 48, 256, 256), (2, 96, 256, 256)],
        "mid": [(2, 48, 8, 8)],
        "high": [(2, 228, 128, 128), (2, 192, 256, 256)],
        "high_symmetric": [(2, 240, 128, 128), (2, 192, 256, 256)],
    }


@pytest.mark.parametrize(("size", "batch"), [((64, 96), 2), ((65, 47), 2), ((32, 66), 3)], ids=["even", "odd", "small"])
def test_equals_the_plain_form(size, batch):
    net = shaken(FCDenseNet(2, 3, width=8, dropout=0.0)).double()
    images = torch.randn(batch, 2, *size, dtype=torch.double)
    check_against(plain, net, images)


@pytest.mark.parametrize("size", [(32, 32, 64), (33, 32, 65)], ids=["even", "odd"])
def test_equals_the_plain_form_in_3d(size):
    """With the running statistics, in single precision."""
    net, images = shaken(FCDenseNet(2, 3, width=8, dims=3)).eval(), torch.randn(1, 2, *size)
    with torch.inference_mode():
        expected, maps = plain(net, images)
        logits, hints = net.with_hints(images)
    for one, two in zip((logits, *hints), (expected, *maps["high"]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_the_first_hint_teaches_all_but_the_last_block_and_the_layer_that_reads_it():
    net = FCDenseNet(1, 2, width=8)
    _, (read, _) = net.with_hints(torch.randn(2, 1, 64, 64))
    read.square().mean().backward()
    untaught = {name for name, p in net.named_parameters() if p.grad is None}
    after = ("up.3.layers.3.", "transition_up.4.", "up.4.", "out.")
    assert untaught == {name for name, _ in net.named_parameters() if name.startswith(after)}
    assert all(p.grad.any() for p in net.parameters() if p.grad is not None and p.ndim > 1)


def test_dropout_follows_every_layer_and_transition():
    """A layer whose channels all fall leaves its result at zero; one that drops a share scales the rest."""
    net = FCDenseNet(1, 2, width=8, dropout=0.5)
    assert len([module for module in net.modules() if hasattr(module, "factors")]) == 11 * 4 + 5
    layer = net.down[0].layers[0]
    x = torch.randn(4, 8, 6, 6)
    dropped, whole = layer(x), layer.conv(functional.relu(layer.norm(x)))
    ratios = (dropped / whole).mean((2, 3))
    assert set(ratios.round(decimals=3).flatten().tolist()) == {0.0, 2.0}


def test_hints_with_dropout_are_noisy_between_passes():
    """Dropout puts a floor under a hint loss; in eval mode there is none."""
    net, images = FCDenseNet(1, 2, width=8), torch.randn(1, 1, 64, 64)
    one, other = (net.with_hints(images)[1][1] for _ in range(2))
    assert not torch.equal(one, other)
    net.eval()
    assert torch.equal(net.with_hints(images)[1][1], net.with_hints(images)[1][1])


def test_initial_weights():
    """He-uniform: within sqrt(6 / fan in), and biases at zero."""
    net = FCDenseNet(1, 2)
    weight = net.up[0].layers[3].conv.weight
    bound = (6 / (372 * 9)) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert torch.equal(net.bottleneck.layers[0].norm.weight, torch.ones(288))
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("width", [0, 2, 6])
def test_a_width_that_layers_cannot_share(width):
    with pytest.raises(ValueError, match=f"width is {width}, it must be a multiple of 4"):
        FCDenseNet(1, 2, width=width)
