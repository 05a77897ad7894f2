"""Samplers: what they yield, that passes are reproducible, and that what is computed once changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from modistill.errors import ModelError
from modistill.inference.sampling import Ensemble, MCDropout, Mirrored, Once
from modistill.inference.windows import sample_windows
from modistill.networks.blocks import EncoderBlock
from modistill.networks.unet import UNet


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(0)
    return UNet(2, 3, width=4, dropout=0.3).eval()


def answers(network: UNet, images: Tensor, **arguments: int) -> list[Tensor]:
    with torch.inference_mode():
        return list(MCDropout(network, network, **{"passes": 3, **arguments})(images))


def test_passes_differ_among_each_other_and_repeat_with_their_seed(network: UNet) -> None:
    images = torch.randn(1, 2, 32, 32, 32)
    first, again, other = answers(network, images), answers(network, images), answers(network, images, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_the_part_before_dropout_is_computed_once_and_changes_no_bit(network: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    images, computed, forward = torch.randn(1, 2, 32, 32, 32), [], EncoderBlock.forward
    monkeypatch.setattr(EncoderBlock, "forward", lambda block, x: (computed.append(block), forward(block, x))[1])
    kept = answers(network, images)
    assert (computed.count(network.d1), computed.count(network.d2)) == (1, 3)
    monkeypatch.setattr(UNet, "before_dropout", ())
    plain = answers(network, images)
    assert computed.count(network.d1) == 1 + 3
    assert all(torch.equal(a, b) for a, b in zip(kept, plain, strict=True))


def test_a_pass_leaves_the_network_and_the_random_state_as_they_were(network: UNet) -> None:
    images = torch.randn(1, 2, 32, 32, 32)
    with torch.inference_mode():
        before = network(images)
        state = torch.random.get_rng_state()
        answers(network, images)
        assert torch.equal(network(images), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module.training for module in network.modules())
    assert "forward" not in vars(network.d1)


def test_the_mean_mask_is_the_network_itself(network: UNet) -> None:
    """Dropout scales what it keeps, so a layer's mean output over many masks is the output without dropout."""
    x = torch.ones(1, 2000, 1, 1, 1)
    layer = network.d2.dropout.train()
    torch.manual_seed(0)
    mean = torch.stack([layer(x) for _ in range(200)]).mean()
    assert abs(mean.item() - 1) < 0.01


def test_a_network_without_dropout_is_refused() -> None:
    network = UNet(2, 3, width=4, dropout=0.0).eval()
    with pytest.raises(ModelError, match="has no dropout"):
        MCDropout(network, network, passes=2)


def test_an_ensemble_of_mirrored_views_asks_everyone() -> None:
    asked = []

    def first(images: Tensor) -> Tensor:
        asked.append("first")
        return images

    sampler = Ensemble([Mirrored(Once(first), (0, 2)), Once(lambda images: 2 * images)])
    images = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    found = list(sampler(images))
    assert asked == ["first"] * 4
    assert all(torch.equal(one, images) for one in found[:4])
    assert torch.equal(found[4], 2 * images)


def test_mean_and_entropy_by_hand() -> None:
    """Two samples, of probabilities (1/2, 1/2) and (3/4, 1/4): mean (5/8, 3/8), entropies ln 2 and 0.5623."""
    logits = [torch.zeros(2), torch.tensor([math.log(3), 0.0])]

    def sampler(images: Tensor):
        for values in logits:
            yield values.reshape(1, 2, 1, 1, 1).expand(1, 2, *images.shape[2:])

    found = sample_windows(sampler, torch.zeros(1, 3, 3, 3), entropy=True)
    torch.testing.assert_close(found[:, 1, 1, 1], torch.tensor([5 / 8, 3 / 8, (math.log(2) + 0.562335) / 2]))
