"""U-HeMIS's network against its table, and what it fuses against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.networks.hemis import Decoder, Encoder, HeMISUNet, mean_and_variance, resize_linear


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def plain_unit(unit: nn.Module, x: Tensor) -> Tensor:
    return unit.conv(functional.leaky_relu(unit.norm(x), 0.01))


def plain_resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Voxel by voxel along one axis after the other: out[i] = (1 - r) x[j] + r x[j + 1] at j + r = i * n / size."""
    for axis, target in enumerate(size, start=2):
        n, slices = x.shape[axis], []
        for i in range(target):
            j, r = divmod(i * n, target)
            slices.append(x.select(axis, j) * (1 - r / target) + x.select(axis, min(j + 1, n - 1)) * r / target)
        x = torch.stack(slices, axis)
    return x


def plain_encoder(encoder: Encoder, image: Tensor) -> list[Tensor]:
    pool = functional.max_pool3d if image.ndim == 5 else functional.max_pool2d
    maps, x = [], functional.leaky_relu(encoder.stem(image), 0.01)
    for first, second in encoder.blocks:
        x = plain_unit(second, plain_unit(first, pool(maps[-1], 2) if maps else x))
        maps.append(x)
    return maps


def plain_decoder(decoder: Decoder, fused: list[Tensor]) -> Tensor:
    x = fused[3]
    for (first, second), skip in zip(decoder.blocks, (fused[2], fused[1], fused[0]), strict=True):
        x = plain_unit(second, plain_unit(first, torch.cat([plain_resize(x, skip.shape[2:]), skip], 1)))
    return decoder.out(x)


def plain(network: HeMISUNet, images: Tensor, presence: Tensor) -> Tensor:
    """One case after the other, with the encoders of the modalities it has and no others."""
    results = []
    for case, there in zip(images, presence, strict=True):
        kept = [m for m in range(len(there)) if there[m]]
        maps = [plain_encoder(network.encoders[m], case[None, m, None]) for m in kept]
        fused = []
        for scale in zip(*maps, strict=True):
            stacked = torch.stack(scale)
            fused.append(torch.cat([stacked.mean(0), stacked.var(0, unbiased=False)], 1))
        results.append(plain_decoder(network.decoder, fused))
    return torch.cat(results)


def shaken(network: nn.Module) -> nn.Module:
    """With norms that are not the identity, so that no term can hide."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".norm." in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.double()


def test_parameters_of_every_part() -> None:
    """Digest, section 6.1: those of the released checkpoint."""
    with torch.device("meta"):
        network = HeMISUNet(4, 4)
    assert [count(encoder) for encoder in network.encoders] == [111_776] * 4
    assert [count(block) for block in network.encoders[0].blocks] == [2_624, 5_224, 20_816, 83_104]
    assert [count(block) for block in network.decoder.blocks] == [97_024, 17_376, 4_368]
    assert (count(network.decoder), count(network)) == (118_784, 565_888)
    assert not any("bias" in name and "norm" not in name for name in network.state_dict())
    assert {module.eps for module in network.modules() if isinstance(module, nn.InstanceNorm3d)} == {1e-6}


@pytest.mark.parametrize(("dims", "size"), [(3, (16, 24, 16)), (3, (17, 19, 16)), (2, (24, 16)), (2, (35, 22))])
def test_equals_the_plain_form(dims: int, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = shaken(HeMISUNet(3, 4, width=4, dims=dims))
    images = torch.randn(3, 3, *size, dtype=torch.double)
    presence = torch.tensor([[True, True, True], [False, True, False], [True, False, True]])
    ours, theirs = network(images, presence), plain(network, images, presence)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    direction, given = torch.randn_like(theirs), list(network.parameters())
    mine, other = torch.autograd.grad(ours, given, direction), torch.autograd.grad(theirs, given, direction)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_mean_and_variance_by_hand() -> None:
    maps = [torch.full((3, 1, 2, 2), value) for value in (1.0, 2.0, 6.0)]
    presence = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    found = mean_and_variance(maps, presence)
    assert found.shape == (3, 2, 2, 2)
    torch.testing.assert_close(found[:, 0, 0, 0], torch.tensor([3.0, 3.5, 2.0]))
    torch.testing.assert_close(found[:, 1, 0, 0], torch.tensor([14 / 3, 6.25, 0.0]))


def test_the_variance_of_a_single_modality_is_exactly_zero_and_its_gradient_finite() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3)]
    presence = torch.tensor([[False, True, False], [True, False, False]])
    found = mean_and_variance(maps, presence)
    assert torch.equal(found[:, 3:], torch.zeros_like(found[:, 3:]))
    assert torch.equal(found[0, :3], maps[1][0])
    gradients = torch.autograd.grad(found.square().sum() + found.sum(), maps)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[2].any()


def test_fused_maps_do_not_depend_on_the_order_of_modalities() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 2, 3, 3, dtype=torch.double) for _ in range(3)]
    presence = torch.tensor([[True, False, True]])
    turned = mean_and_variance(maps[::-1], presence.flip(1))
    torch.testing.assert_close(mean_and_variance(maps, presence), turned)


def test_the_encoder_of_an_absent_modality_gets_a_gradient_of_zero() -> None:
    network = HeMISUNet(3, 2, width=2, dims=2)
    images = torch.randn(1, 3, 16, 16)
    images[:, 1] = 0
    network(images, torch.tensor([[True, False, True]])).square().mean().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in network.encoders[1].parameters())
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert network.encoders[0].stem.weight.grad.any()


def test_resizing_by_hand() -> None:
    x = torch.tensor([0.0, 4.0, 8.0]).reshape(1, 1, 1, 3)
    assert resize_linear(x, (1, 6)).flatten().tolist() == [0, 2, 4, 6, 8, 8]
    assert resize_linear(x, (2, 3)).tolist() == [[[[0, 4, 8], [0, 4, 8]]]]


@pytest.mark.parametrize(("small", "size"), [((4, 5), (8, 11)), ((2, 3, 4), (5, 6, 8)), ((3, 1), (7, 3))])
def test_resizing_equals_the_plain_form(small: tuple[int, ...], size: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *small, dtype=torch.double)
    torch.testing.assert_close(resize_linear(x, size), plain_resize(x, size), rtol=1e-6, atol=1e-6)


def test_initial_weights_are_kaiming_normal() -> None:
    torch.manual_seed(0)
    network = HeMISUNet(1, 4, width=16)
    weight = network.encoders[0].blocks[3][0].conv.weight
    assert weight.std().item() == pytest.approx((2 / (16 * 2 * 27)) ** 0.5, rel=0.02)
    assert torch.equal(network.decoder.blocks[0][0].norm.weight, torch.ones(16 * 8 + 16 * 4))


@pytest.mark.parametrize(
    ("shape", "presence", "message"),
    [
        ((1, 2, 16, 16), [[True, True]], "images of 2 channels and 2 axes"),
        ((1, 3, 16, 16, 16), [[True] * 3], "images of 3 channels and 3 axes"),
        ((1, 3, 16, 16), [[True, True]], r"presence \(1, 2\)"),
        ((1, 3, 7, 16), [[True] * 3], "7x16 voxels are too small"),
        ((1, 3, 8, 8), [[True] * 3], "8x8 voxels are too small"),
        ((2, 3, 16, 16), [[True] * 3, [False] * 3], "without any modality"),
    ],
)
def test_what_it_cannot_read(shape: tuple[int, ...], presence: list[list[bool]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        HeMISUNet(3, 2, width=2, dims=2)(torch.zeros(shape), torch.tensor(presence))


@pytest.mark.parametrize("width", [0, 1, 7])
def test_a_width_that_cannot_be_halved_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"width is {width}"):
        HeMISUNet(3, 2, width=width)
