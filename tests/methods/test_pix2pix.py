"""pix2pix: its terms and turns in plain words, its network layer by layer, its learning rate, its recipe."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.data.batch import Batch
from modistill.errors import ModelError, TrainingStopped
from modistill.inference.windows import blend_windows, by_slices
from modistill.methods.pix2pix import Pix2Pix
from modistill.networks.pix2pix_unet import Pix2PixUNet
from modistill.recipe import load_recipe
from modistill.runs import build_method
from modistill.schedules import LinearDecayAdam
from samples import RandomBatches

SMALL = {"width": 2, "halvings": 3}


def batch_of(size: tuple[int, ...] = (32, 40), batch_size: int = 3, epoch: int = 0) -> Batch:
    """Two modalities in [0, 1], the target first: a method must not go by the order of channels."""
    batch = RandomBatches(("t1ce", "t1"), ("t1",), size=size, batch_size=batch_size).batch(0, 0)
    return replace(batch, images=batch.images.sigmoid(), epoch=epoch)


def small(**options) -> Pix2Pix:
    torch.manual_seed(0)
    method = Pix2Pix(**SMALL | options)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.3)
    return method


def plain_unet(net: Pix2PixUNet, images: Tensor, norm) -> Tensor:
    """The table in PyTorch's own words, without dropout; `norm(maps, layer)`."""
    conv, transposed = functional.conv2d, functional.conv_transpose2d
    maps = [conv(images, net.down[0].weight, stride=2, padding=1)]
    for number, down in enumerate(net.down[1:]):
        x = conv(functional.leaky_relu(maps[-1], 0.2), down.weight, stride=2, padding=1)
        maps.append(x if number == len(net.down) - 2 else norm(x, net.down_norm[number]))
    x = maps.pop()
    for up, layer in zip(net.up, net.up_norm, strict=True):
        x = norm(transposed(x.relu(), up.weight, stride=2, padding=1), layer)
        x = torch.cat([x, maps.pop()], 1)
    return torch.tanh(transposed(x.relu(), net.out.weight, net.out.bias, stride=2, padding=1))


def over_batch(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]


def by_statistics(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    scale = layer.weight / (layer.running_var + 1e-5).sqrt()
    return (x - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]


def of_each(x: Tensor, layer: nn.InstanceNorm2d) -> Tensor:
    return torch.cat([over_batch(one[None], layer) for one in x])


def plain_critic(critic: nn.Module, pairs: Tensor) -> Tensor:
    x = functional.leaky_relu(functional.conv2d(pairs, critic.conv1.weight, critic.conv1.bias, stride=2, padding=1), 0.2)
    for conv in (critic.conv2, critic.conv3, critic.conv4):
        x = functional.conv2d(x, conv.weight, conv.bias, stride=conv.stride, padding=1)
        x = functional.leaky_relu(functional.instance_norm(x), 0.2)
    return functional.conv2d(x, critic.out.weight, critic.out.bias, padding=1)


@pytest.mark.parametrize("halvings", [2, 3, 5])
@pytest.mark.parametrize(
    ("norm", "training", "plain"), [("batch", True, over_batch), ("batch", False, by_statistics), ("instance", True, of_each)]
)
def test_the_generator_is_its_table(halvings: int, norm: str, training: bool, plain) -> None:
    net = small(halvings=halvings, norm=norm, dropout=0.0).generator.double().train(training)
    if norm == "batch":
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    images = torch.rand(2, 1, 64, 32, dtype=torch.double) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(net(images), plain_unet(net, images, plain))


def test_parameters_of_the_generator() -> None:
    """Those of the authors' PyTorch code for 256 pixels and three colours; layer by layer for one channel and 128 pixels."""
    with torch.device("meta"):
        count = {h: sum(p.numel() for p in Pix2PixUNet(3, 3, halvings=h).parameters()) for h in (7, 8)}
        method = Pix2Pix(halvings=7)
        assert Pix2PixUNet(halvings=8)(torch.empty(1, 1, 256, 256)).shape == (1, 1, 256, 256)
    assert count[8] == 54_413_955
    assert count[8] - count[7] == 16 * 512 * (512 + 2 * 512) + 2 * 2 * 512  # a layer down, one up, and their norms
    down = 16 * (1 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 3 * 512 * 512)
    up = 16 * (512 * 512 + 2 * 1024 * 512 + 1024 * 256 + 512 * 128 + 256 * 64 + 128 * 1)
    norms = 2 * (128 + 256 + 3 * 512 + 3 * 512 + 256 + 128 + 64)
    assert sum(p.numel() for p in method.generator.parameters()) == down + up + norms + 1 == 41_822_849
    assert sum(p.numel() for p in method.critic.parameters()) == 2_762_689 + 16 * 64  # of one image, and one channel more
    assert [name for name, _ in method.generator.named_parameters() if "bias" in name and "norm" not in name] == ["out.bias"]


def test_dropout_is_in_the_first_three_decoder_layers_and_in_training_only() -> None:
    net = small(halvings=7).generator
    dropped: list[tuple[int, ...]] = []
    net.dropout.register_forward_hook(lambda _module, _given, made: dropped.append(tuple(made.shape[1:])))
    images = torch.rand(2, 1, 128, 128)
    assert not torch.equal(net(images), net(images))
    assert dropped == 2 * [(16, 2, 2), (16, 4, 4), (16, 8, 8)]
    net.eval()
    assert torch.equal(net(images), net(images))
    assert Pix2Pix(**SMALL).generator.dropout.p == 0.5


def test_initial_weights() -> None:
    torch.manual_seed(0)
    net = Pix2PixUNet(width=16, halvings=5)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            mean = 1.0 if "norm" in name else 0.0
            assert parameter.std().item() == pytest.approx(0.02, rel=0.5 if mean else 0.15), name
            assert parameter.mean().item() == pytest.approx(mean, abs=0.01), name


@pytest.mark.parametrize(("dims", "size"), [(2, (13, 18)), (2, (1, 3)), (2, (33, 16)), (3, (5, 9, 8))])
def test_other_sizes_are_padded_as_a_patch_is_and_cut_back(dims: int, size: tuple[int, ...]) -> None:
    net = small(dims=dims).generator.eval()
    images = torch.rand(2, 1, *size) * 2 - 1
    shape = [-(-n // 8) * 8 for n in size]
    inside = (..., *(slice((m - n) // 2, (m - n) // 2 + n) for n, m in zip(size, shape, strict=True)))
    whole = torch.full((2, 1, *shape), -1.0)
    whole[inside] = images
    torch.testing.assert_close(net(images), net(whole)[inside])


def test_what_it_cannot_read_or_be() -> None:
    net = Pix2PixUNet(width=2, halvings=2)
    with pytest.raises(ModelError, match=r"images of 2 channels and 2 axes, the translator reads 1 and 2 \(give images"):
        net(torch.zeros(1, 2, 16, 16))
    with pytest.raises(ValueError, match="halvings is 1"):
        Pix2Pix(width=2, halvings=1)
    with pytest.raises(ValueError, match="source and target are both t2"):
        Pix2Pix("t2", "t2", **SMALL)


def test_the_terms_in_plain_words() -> None:
    """Probabilities instead of logits, lists of voxels in NumPy; the critic sees source and target, in this order."""
    method, batch = small(dropout=0.0, l1_weight=7.0), batch_of()
    turns = {player: {name: term.item() for name, term in terms.items()} for player, terms in method.losses(batch)}
    y, x = (2 * batch.images.double() - 1).split(1, dim=1)
    with torch.no_grad():
        generator, critic = copy.deepcopy(method.generator).double(), copy.deepcopy(method.critic).double()
        made = plain_unet(generator, x, over_batch)
        on_real, on_fake = (1 / (1 + np.exp(-plain_critic(critic, torch.cat(pair, 1)).numpy())) for pair in ((x, y), (x, made)))
    expected = {
        "critic": {"real": -np.log(on_real).mean() / 2, "fake": -np.log(1 - on_fake).mean() / 2},
        "generator": {"adversarial": -np.log(on_fake).mean(), "l1": 7 * np.abs(y.numpy() - made.numpy()).mean()},
    }
    assert list(turns) == ["critic", "generator"]
    for player, terms in expected.items():
        assert turns[player] == pytest.approx(terms, rel=1e-4)


def test_the_generator_is_judged_by_the_critic_that_has_learnt() -> None:
    """And the critic's turn leaves no gradient in the generator."""
    method, batch = small(dropout=0.0), batch_of()
    turns = method.losses(batch)
    player, terms = next(turns)
    sum(terms.values()).backward()
    assert player == "critic"
    assert all(parameter.grad is None for parameter in method.generator.parameters())
    with torch.no_grad():
        for parameter in method.critic.parameters():
            parameter.zero_()
        method.critic.out.bias.fill_(2.0)
    player, terms = next(turns)
    assert player == "generator"
    assert terms["adversarial"].item() == pytest.approx(np.log(1 + np.exp(-2.0)), rel=1e-6)
    assert next(turns, None) is None


def step(method: Pix2Pix, epoch: int, optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, float]:
    for player, terms in method.losses(batch_of(epoch=epoch)):
        optimizers[player].zero_grad()
        sum(terms.values()).backward(inputs=list(method.get_submodule(player).parameters()))
        optimizers[player].step()
    return {player: optimizer.param_groups[0]["lr"] for player, optimizer in optimizers.items()}


def test_both_players_follow_one_rate() -> None:
    """2e-4 for three of six epochs, then 2e-4, 1.33e-4, 0.67e-4; there is no seventh."""
    method = small(epochs=6)
    optimizers = {player: how(method.get_submodule(player).parameters()) for player, how in method.players.items()}
    rates = [step(method, epoch, optimizers) for epoch in range(6)]
    assert [rate["critic"] for rate in rates] == pytest.approx([2e-4, 2e-4, 2e-4, 2e-4, 4e-4 / 3, 2e-4 / 3])
    assert all(rate["critic"] == rate["generator"] for rate in rates)
    assert all(optimizer.param_groups[0]["betas"] == (0.5, 0.999) for optimizer in optimizers.values())
    with pytest.raises(TrainingStopped, match="zero after 6 epochs"):
        step(method, 6, optimizers)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (LinearDecayAdam(4, lr=0.8), [0.8, 0.8, 0.8, 0.4]),
        (LinearDecayAdam(5, lr=0.8), [0.8, 0.8, 0.8, 0.64, 0.32]),  # constant for two and a half
        (LinearDecayAdam(4, constant=0, lr=0.8), [0.8, 0.6, 0.4, 0.2]),
        (LinearDecayAdam(4, constant=3, lr=0.8), [0.8, 0.8, 0.8, 0.8]),
        (LinearDecayAdam(4, lr=0.8, final=0.2), [0.8, 0.8, 0.8, 0.5]),
        (LinearDecayAdam(1, lr=0.8), [0.8]),
    ],
)
def test_a_rate_that_falls_along_a_line(schedule: LinearDecayAdam, rates: list[float]) -> None:
    """It steps as Adam does at each of these rates, and a resumed optimiser as one that went on."""
    ours, plain = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    mine, theirs = schedule([ours]), torch.optim.Adam([plain], betas=(0.5, 0.999))
    for epoch, rate in enumerate(rates):
        schedule.begin(epoch)
        again = schedule([ours])
        again.load_state_dict(mine.state_dict())
        theirs.param_groups[0]["lr"] = rate
        ours.grad = plain.grad = torch.tensor([1.0 + epoch, -2.0])
        again.step()
        theirs.step()
        assert again.param_groups[0]["lr"] == pytest.approx(rate)
        torch.testing.assert_close(ours, plain)
        mine = again
    with pytest.raises(TrainingStopped, match=rf"fallen to {schedule.final or 'zero'} after {len(rates)} epochs"):
        schedule.begin(len(rates))


def test_the_rates_of_utad_net() -> None:
    """After e > 50 of 100 epochs: 1e-4 - 9.9e-5 (e - 50) / 50."""
    adam = LinearDecayAdam(100, lr=1e-4, final=1e-6, betas=(0.9, 0.999))
    weight = nn.Parameter(torch.zeros(1))
    optimizer, rates = adam([weight]), []
    weight.grad = torch.ones(1)
    for epoch in (0, 50, 51, 75, 99):
        adam.begin(epoch)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-4, 1e-4, 9.802e-5, 5.05e-5, 2.98e-6])


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"constant": 2}, {"constant": -1}, {"final": 1e-3}, {"final": -1e-9}, {"lr": -1.0}]
)
def test_a_line_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LinearDecayAdam(**{"epochs": 2} | wrong)


def test_a_translation_is_always_the_same() -> None:
    """In [0, 1] from [0, 1], slice by slice, and whatever else is in the batch."""
    method = small().eval()
    volume = torch.rand(1, 20, 24, 5)
    translate = by_slices(partial(method.translate, target="t1ce"), at_once=2)
    with torch.inference_mode():
        made = blend_windows(translate, volume)
        alone = torch.stack([method.translate(volume[None, ..., index], "t1ce")[0] for index in range(5)], -1)
    assert made.shape == volume.shape
    assert 0 <= made.min() < made.max() <= 1
    torch.testing.assert_close(made, alone)
    torch.testing.assert_close(alone[..., 0], (method.generator(2 * volume[None, ..., 0] - 1)[0] + 1) / 2)
    with pytest.raises(ModelError, match="translates into t1ce and segments nothing"):
        method.segment(volume[None])


def test_it_learns_a_mapping_from_pairs() -> None:
    """The target is the negative of the source, which no two of a few hundred steps leave unlearnt."""
    torch.manual_seed(0)
    method = Pix2Pix(width=8, halvings=4, dropout=0.0, lr=2e-3)
    optimizers = {player: how(method.get_submodule(player).parameters()) for player, how in method.players.items()}
    batches = RandomBatches(("t1", "t1ce"), ("t1",), size=(32, 32), batch_size=4)

    def pairs(position: int) -> Batch:
        batch = batches.batch(0, position)
        source = functional.avg_pool2d(batch.images[:, :1], 3, 1, 1).sigmoid()
        return replace(batch, images=torch.cat([source, 1 - source], 1))

    def error() -> float:
        batch = pairs(1000)
        return (method.translate(batch.available, "t1ce") - batch.images[:, 1:]).abs().mean().item()

    before = error()
    for position in range(60):
        for player, terms in method.losses(pairs(position)):
            optimizers[player].zero_grad()
            sum(terms.values()).backward(inputs=list(method.get_submodule(player).parameters()))
            optimizers[player].step()
    assert error() < before / 4


def test_the_recipe_has_the_papers_numbers() -> None:
    recipe = load_recipe("translation/pix2pix")
    with torch.device("meta"):
        method = build_method(recipe)
    assert (method.available, method.targets, method.modalities) == (("t1",), ("t1ce",), ("t1", "t1ce"))
    assert recipe.sampling.patch_size == (128, 128) == (method.generator.multiple,) * 2
    assert recipe.training["epochs"] == 200
    assert method.l1_weight == 100
    assert method.adam.lr == 2e-4
