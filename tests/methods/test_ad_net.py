"""AD-Net is HAD-Net but for the critic."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

from modistill.methods.ad_net import ADNet
from modistill.methods.had_net import HADNet
from modistill.networks.critic import HierarchicalCritic
from modistill.recipe import load_recipe
from samples import RandomBatches

BATCHES = RandomBatches(("flair", "t1ce", "t1", "t2"), ("flair", "t1", "t2"))


@pytest.mark.parametrize(("widths", "parameters"), [("outputs", 44_164_992), ("inputs", 109_234_944)])
def test_both_readings_of_the_critics_widths(widths: str, parameters: int) -> None:
    with torch.device("meta"):
        method = ADNet(critic_widths=widths)
    assert sum(p.numel() for p in method.critic.parameters()) == parameters
    assert sum(p.numel() for p in method.student.parameters()) == 16_488_324


def test_defaults_are_had_nets() -> None:
    ours, theirs = (inspect.signature(method).parameters for method in (ADNet, HADNet))
    assert {name: p.default for name, p in ours.items() if name != "critic_widths"} == {n: p.default for n, p in theirs.items()}


def test_every_argument_reaches_had_net() -> None:
    arguments = {"width": 2, "dims": 2, "dropout": 0.3, "class_weights": [1.0, 2.0, 3.0], "adversarial_weight": 0.7}
    arguments |= {
        "critic_rests_above": 0.6,
        "teacher_dropout": False,
        "critic_sees": "probabilities",
        "lr": 1.0,
        "betas": (0, 0),
    }
    assert {*arguments, "modalities", "available", "classes"} == set(inspect.signature(HADNet).parameters)
    ours, theirs = (method(("a", "b", "c"), ("b",), 3, **arguments) for method in (ADNet, HADNet))
    for name in ("reads", "adversarial_weight", "critic_rests_above", "silent"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("teacher", "student", "shown"):
        assert repr(getattr(ours, name)) == repr(getattr(theirs, name))
    assert torch.equal(ours.class_weights, theirs.class_weights)
    assert {player: how.keywords for player, how in ours.players.items()} == {
        player: how.keywords for player, how in theirs.players.items()
    }


def test_the_terms_are_had_nets_with_this_critic() -> None:
    torch.manual_seed(0)
    ad_net, had_net = ADNet(width=2, dropout=0.0), HADNet(width=2, dropout=0.0)
    had_net.critic = HierarchicalCritic(7, width=2, hierarchical=False)
    had_net.load_state_dict(ad_net.state_dict())
    ours, theirs = ([*method.losses(BATCHES.batch(0, 0))] for method in (ad_net, had_net))
    assert ours == theirs


def test_the_critic_sees_no_feature_maps() -> None:
    method = ADNet(width=2).eval()
    images = BATCHES.batch(0, 0).available
    logits, features = method.student.with_features(images)
    other = replace(
        features, **{name: torch.full_like(features.d2, torch.nan) for name in ("d2", "d3", "d4", "c5", "u4", "u3")}
    )
    assert torch.equal(method.critic(logits, images, features), method.critic(logits, images, other))


@pytest.mark.parametrize("stage", ["brats", "demo"])
def test_the_recipe_is_had_nets(stage: str) -> None:
    ours, theirs = load_recipe(f"{stage}/ad_net"), load_recipe(f"{stage}/had_net")
    assert ours.method.arguments == theirs.method.arguments | {"critic_widths": "outputs"}
    for section in ("data", "start_from", "sampling", "training", "inference"):
        assert getattr(ours, section) == getattr(theirs, section)
