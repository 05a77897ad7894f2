from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from modistill.errors import ModelError
from modistill.networks.patch_critic import PatchCritic


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def critic_of(**options):
    """A small critic whose biases would show."""
    torch.manual_seed(0)
    critic = PatchCritic(**{"width": 2} | options)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_(std=0.3)
    return critic


def plain(critic, images, norm=functional.instance_norm):
    """The critic in the words of its table."""
    conv = functional.conv3d if images.ndim == 5 else functional.conv2d
    x = functional.leaky_relu(conv(images, critic.conv1.weight, critic.conv1.bias, 2, 1), 0.2)
    x = functional.leaky_relu(norm(conv(x, critic.conv2.weight, critic.conv2.bias, 2, 1)), 0.2)
    x = functional.leaky_relu(norm(conv(x, critic.conv3.weight, critic.conv3.bias, 2, 1)), 0.2)
    x = functional.leaky_relu(norm(conv(x, critic.conv4.weight, critic.conv4.bias, 1, 1)), 0.2)
    return conv(x, critic.out.weight, critic.out.bias, 1, 1)


def test_parameters_of_every_layer():
    """16 taps times input times output channels, plus output channels."""
    with torch.device("meta"):
        critic, volume = PatchCritic(), PatchCritic(dims=3)
    assert [count(layer) for layer in critic.children()] == [1_088, 131_200, 524_544, 2_097_664, 8_193]
    assert count(critic) == 2_762_689
    assert volume.conv1.weight.shape == (64, 1, 4, 4, 4)


@pytest.mark.parametrize(("n", "patches"), [(24, 1), (31, 1), (32, 2), (70, 6), (255, 29), (256, 30)])
def test_number_of_patches(n, patches):
    with torch.device("meta"):
        assert PatchCritic()(torch.empty(2, 1, n, n)).shape == (2, 1, patches, patches)


def test_a_patch_is_70_by_70():
    """Without the norm, which sees the whole image, one logit depends on 70 pixels along each axis."""
    critic, image = critic_of(), torch.randn(1, 1, 160, 160, requires_grad=True)
    (gradient,) = torch.autograd.grad(plain(critic, image, norm=lambda x: x)[0, 0, 9, 8], image)
    rows, columns = (gradient[0, 0].abs().sum(axis).nonzero().flatten() for axis in (1, 0))
    assert [len(rows), len(columns)] == [70, 70]
    assert rows[-1] - rows[0] == columns[-1] - columns[0] == 69


@pytest.mark.parametrize(("dims", "size", "batch"), [(2, (32, 48), 1), (2, (25, 43), 2), (3, (24, 32, 25), 1)])
def test_equals_the_plain_form(dims, size, batch):
    critic, images = critic_of(dims=dims).double(), torch.randn(batch, 1, *size, dtype=torch.double, requires_grad=True)
    ours, theirs = critic(images), plain(critic, images)
    torch.testing.assert_close(ours, theirs)
    given, direction = [images, *critic.parameters()], torch.randn_like(theirs)
    for one, two in zip(
        torch.autograd.grad(ours, given, direction), torch.autograd.grad(theirs, given, direction), strict=True
    ):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_a_batch_is_its_parts():
    critic, images = critic_of(), torch.randn(3, 1, 40, 32)
    torch.testing.assert_close(critic(images), torch.cat([critic(image[None]) for image in images]))


def test_gradients_for_the_generator_only():
    critic, images = critic_of(), torch.randn(1, 1, 32, 32, requires_grad=True)
    critic(images).square().mean().backward(inputs=[images])
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_initial_weights():
    torch.manual_seed(0)
    for name, parameter in PatchCritic(width=16).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


def test_what_it_cannot_read():
    critic = PatchCritic(width=2)
    with pytest.raises(ModelError, match=r"23x32 voxels are too small for the critic: every axis needs 24 \(choose a larger"):
        critic(torch.zeros(1, 1, 23, 32))
    with pytest.raises(ModelError, match="images of 3 channels and 2 axes, the critic reads 1 and 2"):
        critic(torch.zeros(1, 3, 32, 32))
