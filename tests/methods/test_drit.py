"""DRIT's turns: who learns from what, what noise and styles do, and its terms from an independent count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.methods.drit import DRIT
from samples import RandomBatches

SMALL = {"width": 2, "blocks": 1, "code": 3, "critic_scales": 1, "content_layers": 0}


def make(**arguments: Any) -> DRIT:
    torch.manual_seed(0)
    return DRIT(**{**SMALL, **arguments}).train()


def batch_of(method: DRIT, **arguments: Any) -> Any:
    how = {"size": (32, 32), "classes": 2, "domains": method.domains, **arguments}
    return RandomBatches(method.modalities, method.available, **how).batch(0, 0)


def parts(method: DRIT) -> dict[str, nn.Module]:
    translator = method.generators["translator"]
    named = {"content": translator.content, "generator": translator.generator, "style": method.generators["style"]}
    return named | dict(method.critics.items()) | {"content_critic": method.content_critic}


def reached(term: Tensor, networks: dict[str, nn.Module]) -> set[str]:
    found = set()
    for name, network in networks.items():
        gradients = torch.autograd.grad(term, list(network.parameters()), retain_graph=True, allow_unused=True)
        if any(gradient is not None and gradient.any() for gradient in gradients):
            found.add(name)
    return found


def test_who_learns_from_what() -> None:
    method = make(content_codes_weight=1.0)
    networks = parts(method)
    own = {
        "generators": {"content", "generator", "style"},
        "critics": set(method.critics),
        "content_critic": {"content_critic"},
    }
    turns = [
        (player, {name: reached(term, networks) & own[player] for name, term in terms.items()})
        for player, terms in method.losses(batch_of(method))
    ]
    critic = ("content_critic", {"content": {"content_critic"}})
    assert turns == [
        critic,
        critic,
        critic,
        ("critics", {name: {name} for name in ("source", "target", "source_random", "target_random")}),
        (
            "generators",
            {
                "adversarial": {"content", "generator", "style"},
                "content": {"content"},
                "reconstruction": {"content", "generator", "style"},
                "cross_cycle": {"content", "generator", "style"},
                "divergence": {"style"},
                "content_size": {"content"},
                "content_codes": {"content", "generator", "style"},
            },
        ),
        (
            "generators",
            {
                "adversarial_random": {"content", "generator"},
                "latent": {"content", "generator"},
                "mode_seeking": {"content", "generator"},
            },
        ),
    ]
    assert all(parameter.requires_grad for parameter in method.parameters())


def test_terms_of_weight_nothing_are_left_out() -> None:
    terms = [set(terms) for _, terms in make(mode_seeking_weight=0, content_updates=1).losses(batch_of(make()))]
    assert "content_codes" not in terms[2]
    assert terms[3] == {"adversarial_random", "latent"}
    assert len(terms) == 4


def test_the_terms_from_the_definitions() -> None:
    """Everything again, image by image, with the same draws."""
    method = make(weight_decay=0.0)
    batch = batch_of(method, batch_size=2)
    torch.manual_seed(5)
    turns = list(method.losses(batch))

    torch.manual_seed(5)
    translator, style = method.generators["translator"], method.generators["style"]
    images = {"source": 2 * batch.having(("ct",)).images - 1, "target": 2 * batch.having(("mr",)).images - 1}
    real = {name: x[:1] for name, x in images.items()}
    clean = {name: translator.content(x, name) for name, x in real.items()}

    def entropy(logits: Tensor, target: float) -> Tensor:
        p = logits.sigmoid()
        return -(target * p.log() + (1 - target) * (1 - p).log()).mean()

    for k in range(3):
        z = {name: clean[name] + torch.randn_like(clean[name]) for name in clean}
        expected = entropy(method.content_critic(z["source"]), 0) + entropy(method.content_critic(z["target"]), 1)
        torch.testing.assert_close(turns[k][1]["content"], expected)
    z = {name: clean[name] + torch.randn_like(clean[name]) for name in clean}
    styles = {name: style(x, name) for name, x in real.items()}
    codes = [torch.randn(1, 3) for _ in range(2)]
    same, crossed, free = {}, {}, {}
    for name, other in (("source", "target"), ("target", "source")):
        drawn = styles[name].mean + (styles[name].logvar / 2).exp() * torch.randn(1, 3)
        same[name] = translator.generator(z[name], drawn, name)
        crossed[name] = translator.generator(z[other], drawn, name)
        free[name] = [translator.generator(z[other], code, name) for code in codes]
    (critic,) = method.critics["source"](real["source"])
    (fooled,) = method.critics["source"](crossed["source"])
    terms = turns[3][1]
    torch.testing.assert_close(terms["source"], entropy(critic, 1) + entropy(fooled, 0))
    (critic,) = method.critics["target_random"](images["target"][1:])  # the other half of the batch
    fooled = torch.cat([method.critics["target_random"](x)[0] for x in free["target"]])
    torch.testing.assert_close(terms["target_random"], entropy(critic, 1) + entropy(fooled, 0))

    back = {}
    met = {"target": translator.content(crossed["source"], "source"), "source": translator.content(crossed["target"], "target")}
    for name in ("source", "target"):
        content = met[name] + torch.randn_like(met[name])
        found = style(crossed[name], name)
        back[name] = translator.generator(content, found.mean + (found.logvar / 2).exp() * torch.randn(1, 3), name)
    terms = turns[4][1]
    torch.testing.assert_close(terms["cross_cycle"], 10 * sum((back[n] - real[n]).abs().mean() for n in real))
    torch.testing.assert_close(terms["reconstruction"], 10 * sum((same[n] - real[n]).abs().mean() for n in real))
    torch.testing.assert_close(terms["content"], sum(entropy(method.content_critic(z[n]), 0.5) for n in real))
    torch.testing.assert_close(terms["content_size"], 0.01 * sum(z[n].square().mean() for n in real))
    kl = sum((s.mean**2 + s.logvar.exp() - s.logvar - 1).sum() / 2 for s in styles.values())
    torch.testing.assert_close(terms["divergence"], 0.01 * kl)

    z = {name: clean[name] + torch.randn_like(clean[name]) for name in clean}
    free = {n: [translator.generator(z[o], code, n) for code in codes] for n, o in (("source", "target"), ("target", "source"))}
    terms = turns[5][1]
    latent = sum((style(free[n][0], n).mean - codes[0]).abs().mean() for n in free)
    torch.testing.assert_close(terms["latent"], 10 * latent)
    apart = functional.l1_loss(*codes)
    torch.testing.assert_close(terms["mode_seeking"], sum(1 / (functional.l1_loss(*free[n]) / apart + 1e-5) for n in free))


def test_a_translation_has_no_chance_and_the_style_of_what_is_shown() -> None:
    method = make()
    source, target = torch.rand(2, 1, 33, 40) * 2 - 1, torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        one, two = method.to_target(source, target), method.to_target(source, target)
        assert torch.equal(one, two)  # in training, too
        style = method.generators["style"](target, "target").mean
        torch.testing.assert_close(one, method.generators["translator"](source, style))
        torch.testing.assert_close(method.translate((source + 1) / 2, method.target), (method.to_target(source) + 1) / 2)
        method.generators["translator"].mean_style.copy_(style.mean(0))
        torch.testing.assert_close(
            method.to_target(source), method.generators["translator"](source, style.mean(0, keepdim=True))
        )
        assert method.to_source(target).shape == target.shape
        assert not torch.equal(one, method.to_target(source))


def test_the_style_of_test_time_is_the_average_of_those_that_training_showed() -> None:
    method, batch = make(), batch_of(make())
    with torch.no_grad():
        style = method.generators["style"](2 * batch.having(("mr",)).images[:1] - 1, "target").mean
    for _ in method.losses(batch):
        pass
    torch.testing.assert_close(method.generators["translator"].mean_style, 0.01 * style)


def test_one_image_a_domain_is_enough() -> None:
    for _, terms in make().losses(batch_of(make(), batch_size=1)):
        assert all(term.isfinite() for term in terms.values())


def test_patches_too_small_for_the_critics_are_refused_with_the_arguments_to_change() -> None:
    method = make(content_layers=1)
    with pytest.raises(ModelError, match=r"patches of 32x32 voxels, the critics need 41 .*content_layers"):
        next(method.losses(batch_of(method)))
    assert (make(content_layers=3).smallest, make(critic_scales=3).smallest) == (209, 61)
    next(method.losses(batch_of(method, size=(41, 41))))


def test_gradients_of_the_critic_of_contents_are_bounded() -> None:
    method = make()
    optimizer = method.players["content_critic"](method.content_critic.parameters())
    parameters = list(method.content_critic.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 10.0)
    optimizer.step()
    assert nn.utils.get_total_norm([p.grad for p in parameters]).item() == pytest.approx(5.0)
