"""UTAD-Net's generator and critic: sizes, shapes, schemes, what becomes of the code, and the layers written out plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modistill.errors import ModelError
from modistill.networks.star_critic import StarCritic
from modistill.networks.two_branch import Encoder, TwoBranchGenerator


def make(**arguments: object) -> TwoBranchGenerator:
    torch.manual_seed(0)
    return TwoBranchGenerator(**{"width": 4, "levels": 3, **arguments})


def inputs(size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(2, 1, size, size) * 2 - 1, torch.rand(2, 1, size, size) * 2 - 1, torch.tensor([0, 3])


def test_sizes_of_the_parts_at_full_width() -> None:
    with torch.device("meta"):
        generator = TwoBranchGenerator()
    parts = {
        "encoder": generator.whole.encoder,
        "tumour_encoder": generator.whole.tumour_encoder,
        "fusion": generator.whole.fusion,
        "decoder": generator.whole.decoder,
        "tumour_decoder": generator.tumour_decoder,
    }
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} == {
        "encoder": 18_844_352,
        "tumour_encoder": 18_844_352,
        "fusion": 37_754_880,
        "decoder": 15_670_145,
        "tumour_decoder": 15_670_145,
    }


@pytest.mark.parametrize("scheme", ["a", "b", "c", "d"])
def test_images_keep_their_size_and_lie_between_minus_one_and_one(scheme: str) -> None:
    x, t, k = inputs()
    made = make(scheme=scheme)(x, t, k)
    assert made.whole.shape == x.shape
    assert made.whole.abs().max() <= 1
    assert (made.tumour is None) == (scheme in "bd")
    assert made.fused.shape == (2, 32, 4, 4)
    other = make(scheme=scheme)(x, -t, k)
    assert torch.equal(made.whole, other.whole) == (scheme in "bc")  # these have no encoder of the tumour


def test_the_layers_written_out_with_plain_pytorch() -> None:
    generator, (x, t, k) = make().eval(), inputs()
    state = generator.state_dict()

    def conv(y: Tensor, name: str, padding: int = 1) -> Tensor:
        return functional.conv2d(y, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    def unit(y: Tensor, name: str) -> Tensor:
        return functional.leaky_relu(functional.instance_norm(conv(y, f"{name}.conv")), 0.01)

    def encode(image: Tensor, name: str) -> list[Tensor]:
        code = functional.one_hot(k, 4).float().reshape(2, 4, 1, 1).expand(2, 4, 32, 32)
        y, maps = torch.cat([image, code], 1), []
        for level in range(4):
            y = functional.max_pool2d(y, 2) if level else y
            y = unit(unit(y, f"{name}.levels.{level}.0"), f"{name}.levels.{level}.1")
            maps.append(y)
        return maps

    def norm(y: Tensor, name: str) -> Tensor:
        n = f"whole.fusion.{name}"
        return functional.batch_norm(
            y, state[f"{n}.running_mean"], state[f"{n}.running_var"], state[f"{n}.weight"], state[f"{n}.bias"]
        )

    def decode(y: Tensor, maps: list[Tensor], name: str) -> Tensor:
        for number, skip in enumerate(reversed(maps[:-1])):
            y = functional.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
            y = torch.cat([skip, unit(y, f"{name}.up.{number}")], 1)
            y = unit(unit(y, f"{name}.levels.{number}.0"), f"{name}.levels.{number}.1")
        return conv(y, f"{name}.out", padding=0).tanh()

    of_x, of_t = encode(x, "whole.encoder"), encode(t, "whole.tumour_encoder")
    a, b = of_x[-1], of_t[-1]
    fused = torch.cat([a + b, a * b, torch.max(a, b)], 1)
    for number in (1, 2):
        fused = functional.leaky_relu(norm(conv(fused, f"whole.fusion.conv{number}"), f"norm{number}"), 0.1)
    made = generator(x, t, k)
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(made.fused, fused, **close)
    torch.testing.assert_close(made.whole, decode(fused, of_x, "whole.decoder"), **close)
    torch.testing.assert_close(made.tumour, decode(fused, of_t, "tumour_decoder"), **close)


def test_the_first_norm_erases_the_code_but_for_a_frame_and_without_it_the_code_stays() -> None:
    image = torch.rand(1, 1, 32, 32).expand(4, -1, -1, -1)
    code = torch.eye(4)[:, :, None, None].expand(-1, -1, 32, 32)
    spread = {}
    for norm in (True, False):
        torch.manual_seed(0)
        encoder = Encoder(5, 16, 2, 2, first_norm=norm)
        torch.nn.init.zeros_(encoder.levels[0][0].conv.bias)
        maps = encoder.levels[0][0](torch.cat([image, code], 1)).detach().std(0).mean(0)  # how the four codes differ
        spread[norm] = float(maps[8:-8, 8:-8].mean()), float(maps[0].mean())
    inside, frame = spread[True]
    assert frame > 5 * inside
    inside, frame = spread[False]
    assert inside > frame / 2


@pytest.mark.parametrize("first_norm", [True, False])
def test_the_image_depends_on_the_modality_wanted(first_norm: bool) -> None:
    generator, (x, t, k) = make(first_norm=first_norm, fusion_norm="instance"), inputs()
    one, other = generator(x, t, k).whole, generator(x, t, (k + 1) % 4).whole
    assert (one - other).abs().mean() > 1e-3


def test_sides_that_cannot_be_halved_are_refused() -> None:
    x, t, k = inputs(36)
    with pytest.raises(ModelError, match=r"36x36 voxels cannot be halved 3 times.*multiples of 8"):
        make()(x, t, k)
    with pytest.raises(ValueError, match="no scheme 'e'"):
        make(scheme="e")


@pytest.mark.parametrize(("side", "left"), [(128, 2), (48, 3), (64, 2), (96, 3), (8, 2)])
def test_a_critic_halves_until_two_or_three_voxels_are_left(side: int, left: int) -> None:
    realism, names = StarCritic(3, width=2, side=side)(torch.rand(2, 1, side, side))
    assert realism.shape == (2, 1, left, left)
    assert names.shape == (2, 3)


def test_a_critic_refuses_slices_of_another_size() -> None:
    with pytest.raises(ModelError, match="images of 1x32x16, the critic reads 1x32x32"):
        StarCritic(2, width=2, side=32)(torch.rand(1, 1, 32, 16))
    with pytest.raises(ValueError, match="slices of 50 voxels"):
        StarCritic(2, width=2, side=50)
