import pytest
import torch
from torch.nn import functional

from modistill.errors import ModelError
from modistill.networks.critic import HierarchicalCritic
from modistill.networks.unet import UNet

KINDS = [{}, {"hierarchical": False}, {"hierarchical": False, "widths": "inputs"}]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def plain(critic, logits, images, f):
    """The critic in the words of its table: concatenate, convolve, normalise, activate."""

    def beside(x, encoder, decoder):
        return torch.cat([x, encoder, functional.interpolate(decoder, encoder.shape[2:])], 1) if critic.hierarchical else x

    x = functional.leaky_relu(critic.conv1(torch.cat([logits, images], 1)), 0.2)
    x = functional.leaky_relu(functional.instance_norm(critic.conv2(beside(x, f.d2, f.u3))), 0.2)
    x = functional.leaky_relu(functional.instance_norm(critic.conv3(beside(x, f.d3, f.u4))), 0.2)
    x = functional.leaky_relu(functional.instance_norm(critic.conv4(beside(x, f.d4, f.c5))), 0.2)
    return critic.out(x)


def example(dims=3, size=(32, 48, 32), batch=1, **kind):
    torch.manual_seed(0)
    net = UNet(in_channels=2, classes=3, width=2, dropout=0, dims=dims)
    critic = HierarchicalCritic(5, width=2, dims=dims, **kind)
    images = torch.randn(batch, 2, *size)
    return net, critic, images


def test_parameters_of_every_layer():
    with torch.device("meta"):
        critic, *flat = (HierarchicalCritic(7, **kind) for kind in KINDS)
    assert [count(layer) for layer in critic.children()] == [57_472, 4_194_560, 16_777_728, 67_109_888, 65_536]
    assert [count(critic), *map(count, flat)] == [88_205_184, 44_164_992, 109_234_944]
    assert critic.state_dict()["conv2.weight"].shape == (256, 256, 4, 4, 4)
    assert critic.out.bias is None


def test_patches_of_a_whole_volume():
    with torch.device("meta"):
        student, critic = UNet(in_channels=3, classes=4), HierarchicalCritic(7)
        images = torch.empty(1, 3, 160, 192, 160)
        logits, features = student.with_features(images)
        assert critic(logits, images, features).shape == (1, 1, 9, 11, 9)


@pytest.mark.parametrize(("size", "patches"), [(32, 1), (33, 1), (48, 2), (96, 5)])
def test_patches_of_a_square(size, patches):
    net, critic, images = example(dims=2, size=(size, size))
    logits, features = net.with_features(images)
    assert critic(logits, images, features).shape == (1, 1, patches, patches)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("dims", "size", "batch"), [(3, (32, 48, 32), 1), (3, (33, 35, 47), 1), (2, (64, 48), 1), (2, (35, 50), 2)]
)
def test_equals_the_plain_form(dims, size, batch, kind):
    net, critic, images = (part.double() for part in example(dims, size, batch, **kind))
    logits, features = net.with_features(images)
    ours, theirs = critic(logits, images, features), plain(critic, logits, images, features)
    torch.testing.assert_close(ours, theirs)
    given = [logits, features.d2, features.u3, features.d4, features.c5, *critic.parameters()]
    direction = torch.randn_like(theirs)
    mine = torch.autograd.grad(ours, given, direction, allow_unused=True, retain_graph=True)  # the features share a graph
    other = torch.autograd.grad(theirs, given, direction, allow_unused=True)
    for one, two in zip(mine, other, strict=True):
        assert (one is None) == (two is None)
        if two is not None:
            torch.testing.assert_close(one, two)


def test_equals_the_plain_form_through_training():
    net, critic, images = (part.double() for part in example())
    twin = HierarchicalCritic(5, width=2).double()
    twin.load_state_dict(critic.state_dict())
    adam = [torch.optim.Adam(one.parameters(), lr=2e-4, betas=(0.5, 0.999)) for one in (critic, twin)]
    for _ in range(3):
        images = torch.randn_like(images)
        with torch.no_grad():
            logits, features = net.with_features(images)
        results = critic(logits, images, features), plain(twin, logits, images, features)
        torch.testing.assert_close(*results)
        for result, optimizer in zip(results, adam, strict=True):
            optimizer.zero_grad()
            (result - 1).square().mean().backward()
            optimizer.step()


def test_gradients_for_the_student_only():
    """What the student's turn asks for: the critic's own gradients are not computed."""
    net, critic, images = example()
    logits, features = net.with_features(images)
    critic(logits, images, features).square().mean().backward(inputs=list(net.parameters()))
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert net.d1.conv1.weight.grad.abs().sum() > 0


def test_initial_weights_are_pytorchs():
    critic = HierarchicalCritic(7, width=2)
    bound = (7 * 64) ** -0.5  # uniform in +-1/sqrt(fan in)
    assert bound * 0.95 < critic.conv1.weight.abs().max() <= bound


def test_what_it_cannot_read():
    _, critic, _ = example()
    logits = torch.zeros(1, 3, 16, 32, 32)
    with pytest.raises(ModelError, match="16x32x32 voxels are too small for the critic"):
        critic(logits, logits[:, :2], None)
    with pytest.raises(ModelError, match="6 channels"):
        critic(logits, logits, None)
