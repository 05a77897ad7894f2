"""What the segmentors with hints share: sizes, sites, norms, and passes that leave statistics and dropout alone."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.networks.bilinear_unet import BilinearUNet
from modistill.networks.blocks import ConvNormReLU, build_norm, frozen_statistics, resize_linearly, without_dropout
from modistill.networks.fc_densenet import FCDenseNet
from modistill.networks.hinted import Hints
from modistill.networks.mrrn import MRRN

NETWORKS = [BilinearUNet, FCDenseNet, MRRN]
SMALLEST = {BilinearUNet: 16, FCDenseNet: 32, MRRN: 16}
SITES = [(kind, at) for kind in NETWORKS for at in kind.sites]

every_network = pytest.mark.parametrize("kind", NETWORKS)


def small(kind, **options):
    return kind(**{"in_channels": 2, "classes": 3, "width": 4} | options)


def smallest(kind, batch=1, dims=2):
    """Images of the smallest size."""
    return torch.randn(batch, 2, *[SMALLEST[kind]] * (dims - 1), 2 * SMALLEST[kind])


@every_network
def test_all_have_the_papers_sites(kind):
    assert {"low", "mid", "high"} <= kind.sites.keys()


@pytest.mark.parametrize(("kind", "at"), SITES)
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_channels_of_hints_are_those_of_the_maps(kind, at, norm):
    net = small(kind, norm=norm).eval()
    images = smallest(kind)
    with torch.inference_mode():
        logits, hints = net.with_hints(images, at)
        assert torch.equal(logits, net(images))
    assert logits.shape == (1, 3, *images.shape[2:])
    assert tuple(hint.shape[1] for hint in hints) == net.hint_channels(at)


@every_network
def test_high_is_the_default(kind):
    net = small(kind).eval()
    images = smallest(kind)
    assert net.hint_channels() == net.hint_channels("high")
    for one, two in zip(net.with_hints(images)[1], net.with_hints(images, "high")[1], strict=True):
        assert torch.equal(one, two)


@every_network
@pytest.mark.parametrize("dims", [2, 3])
def test_the_smallest_and_odd_sizes(kind, dims):
    net, least = small(kind, dims=dims).eval(), SMALLEST[kind]
    for size in ([least] * (dims - 1) + [2 * least], [least + 1] * (dims - 1) + [2 * least + 3], [2 * least - 1] * dims):
        if max(size) >= 2 * least:
            with torch.inference_mode():
                assert net(torch.randn(1, 2, *size)).shape == (1, 3, *size)


@every_network
def test_every_norm_trains_on_the_smallest_image(kind):
    for norm in ("batch", "instance", "group"):
        net = small(kind, norm=norm)
        net(smallest(kind)).square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@every_network
def test_a_batch_is_its_parts_in_eval_mode(kind):
    net = small(kind).double()
    images = torch.randn(2, 2, 37, 70, dtype=torch.double)
    for _ in range(20):  # running statistics that are not those of a start, and near those of such images
        net(images)
    net.eval()
    torch.testing.assert_close(net(images), torch.cat([net(images[:1]), net(images[1:])]))


@every_network
def test_images_in_either_memory_order(kind):
    net, images = small(kind).eval(), smallest(kind)
    torch.testing.assert_close(net(images), net(images.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize(("kind", "at"), SITES)
def test_no_other_map_is_kept_alive(kind, at):
    net, seen = small(kind).eval(), []

    def note(module, given, result):
        seen.extend(weakref.ref(x) for x in (result if isinstance(result, tuple) else (result,)))

    for module in net.modules():
        if module is not net:
            module.register_forward_hook(note)
    with torch.no_grad():
        _, hints = net.with_hints(smallest(kind), at)
    alive = [reference() for reference in seen if reference() is not None]
    assert len(seen) > 20
    assert all(any(x is hint for hint in hints) for x in alive)


def test_hints_pass_maps_through_and_keep_what_was_asked_for_in_that_order():
    hints, maps = Hints(("c", "a")), {name: torch.randn(1) for name in "abc"}
    assert all(hints(name, x) is x for name, x in maps.items())
    assert [id(x) for x in hints.maps()] == [id(maps["c"]), id(maps["a"])]
    assert Hints().maps() == ()


@every_network
def test_dropout(kind):
    """A network without any repeats itself; with it, passes differ, unless dropout is taken out of them."""
    images = smallest(kind)
    still, wild = small(kind, dropout=0.0, norm="instance"), small(kind, dropout=0.5, norm="instance")
    assert torch.equal(still(images), still(images))
    assert not torch.equal(wild(images), wild(images))
    with without_dropout(wild):
        inside = wild(images)
        assert wild.training
        assert torch.equal(inside, wild(images))
    assert torch.equal(inside, wild.eval()(images))  # instance norms know no modes
    assert not torch.equal(wild.train()(images), inside)


@every_network
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_bf16_autocast_trains_and_stays_close(kind, norm):
    net, images = small(kind, norm=norm, dropout=0.0), smallest(kind, batch=2)
    labels = torch.randint(3, (2, *images.shape[2:]))
    exact = functional.cross_entropy(net(images), labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits, hints = net.with_hints(images)
    loss = functional.cross_entropy(logits.float(), labels)
    loss.backward()
    assert all(hint.isfinite().all() for hint in hints)
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert net.out.weight.grad.isfinite().all()


@every_network
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 64, 64), "images of 3 channels and 2 axes, the network reads 2 and 2"),
        ((1, 2, 64, 64, 64), "images of 2 channels and 3 axes, the network reads 2 and 2"),
    ],
)
def test_what_it_cannot_read(kind, shape, message):
    for call in (small(kind), small(kind).with_hints):
        with pytest.raises(ModelError, match=message) as caught:
            call(torch.zeros(shape))
        assert "\n" not in str(caught.value)


@every_network
def test_images_that_are_too_small(kind):
    net, least = small(kind), SMALLEST[kind]
    for size in ((least - 1, 99), (least, 2 * least - 1)):
        with pytest.raises(ModelError, match=f"{size[0]}x{size[1]} voxels are too small: every axis needs {least}, one of"):
            net(torch.zeros(1, 2, *size))


@every_network
def test_an_unknown_site_or_norm(kind):
    net = small(kind)
    for call in (lambda: net.hint_channels("top"), lambda: net.with_hints(smallest(kind), "top")):
        with pytest.raises(ValueError, match=f"no hints at 'top'; {kind.__name__} has low, mid, high"):
            call()
    with pytest.raises(ValueError, match="norm is 'layer', it must be batch, instance or group"):
        small(kind, norm="layer")


# Norms


def test_norms_by_hand():
    """Over the batch, over a sample, and over the four channels of a group."""
    x = torch.randn(3, 32, 5, 7)
    for kind, shape, axes in (
        ("batch", (3, 32, 35), (0, 2)),
        ("instance", (3, 32, 35), (2,)),
        ("group", (3, 8, 4 * 35), (2,)),
    ):
        values = x.reshape(shape)
        mean, variance = values.mean(axes, keepdim=True), values.var(axes, unbiased=False, keepdim=True)
        expected = ((values - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
        torch.testing.assert_close(build_norm(kind, 32, 2)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(64, 8), (12, 4), (228, 4), (6, 2), (5, 1)])
def test_groups_divide_the_channels(channels, groups):
    assert build_norm("group", channels, 2).num_groups == groups


@pytest.mark.parametrize(
    ("dims", "kinds"), [(2, (nn.BatchNorm2d, nn.InstanceNorm2d)), (3, (nn.BatchNorm3d, nn.InstanceNorm3d))]
)
def test_norms_are_pytorchs(dims, kinds):
    assert type(build_norm("batch", 4, dims)) is kinds[0]
    assert type(build_norm("instance", 4, dims)) is kinds[1]
    assert all(len(list(build_norm(kind, 4, dims).parameters())) == 2 for kind in ("batch", "instance", "group"))


def test_running_statistics_follow_pytorchs_rule():
    """A tenth of the way to the batch's mean and unbiased variance."""
    block, x = ConvNormReLU(2, 3, norm="batch", dims=2), torch.randn(4, 2, 6, 6)
    made = functional.conv2d(x, block.conv.weight, block.conv.bias, padding=1)
    block(x)
    torch.testing.assert_close(block.norm.running_mean, 0.1 * made.mean((0, 2, 3)))
    torch.testing.assert_close(block.norm.running_var, 0.9 + 0.1 * made.var((0, 2, 3)))


def test_a_block_reads_several_maps_as_if_concatenated():
    block, parts = ConvNormReLU(5, 3, norm="batch", dims=3), [torch.randn(2, n, 4, 5, 6) for n in (3, 2)]
    joined = functional.conv3d(torch.cat(parts, 1), block.conv.weight, block.conv.bias, padding=1)
    torch.testing.assert_close(block(*parts), functional.relu(block.norm(joined)), rtol=1e-4, atol=1e-5)


def test_resizing_by_hand():
    x = torch.tensor([0.0, 6.0]).reshape(1, 1, 1, 2)
    assert resize_linearly(x, (1, 4), align_corners=True).flatten().tolist() == pytest.approx([0, 2, 4, 6])
    assert resize_linearly(x, (1, 4), align_corners=False).flatten().tolist() == pytest.approx([0, 1.5, 4.5, 6])
    assert resize_linearly(x[..., None, :], (1, 3, 3), align_corners=True)[0, 0, 0, 2].tolist() == pytest.approx([0, 3, 6])


# Passes that leave no trace


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@every_network
def test_frozen_statistics_compute_the_same_and_remember_nothing(kind):
    net, images = small(kind, dropout=0.0), smallest(kind, batch=2) * 3 + 1
    before = state(net)
    with frozen_statistics(net):
        assert net.training
        frozen = net(images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    mine = torch.autograd.grad(frozen.square().sum(), net.out.weight)
    free = net(images)
    assert torch.equal(frozen, free)
    assert torch.equal(mine[0], torch.autograd.grad(free.square().sum(), net.out.weight)[0])
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "running" in name or "num_batches" in name}


def test_frozen_statistics_in_eval_mode_are_those_that_normalise():
    norm = nn.BatchNorm3d(2)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    x = torch.full((1, 2, 2, 2, 2), 5.0)
    with frozen_statistics(norm.eval()):
        torch.testing.assert_close(norm(x), torch.full_like(x, 2.0))


def test_after_an_error_and_after_nesting_all_is_as_it_was():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False), nn.InstanceNorm2d(2))
    with pytest.raises(KeyError), frozen_statistics(net):
        raise KeyError
    assert [module.track_running_stats for module in net] == [True, False, False]
    with frozen_statistics(net):
        with frozen_statistics(net[0]):
            pass
        net(torch.randn(2, 2, 4, 4))
    assert net[0].num_batches_tracked == 0
    assert [module.track_running_stats for module in net] == [True, False, False]
