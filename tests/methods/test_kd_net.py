"""KD-Net's turn, worked out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from modistill.errors import RecipeError
from modistill.methods.kd_net import KDNet
from modistill.recipe import build, load_recipe
from samples import RandomBatches

ALL, AVAILABLE = ("flair", "t1ce", "t1", "t2"), ("flair", "t1", "t2")
BATCHES = RandomBatches(ALL, AVAILABLE)


def make(*names: tuple[str, ...], **arguments: Any) -> KDNet:
    torch.manual_seed(0)
    return KDNet(*names, **{"width": 2, "dropout": 0.0, **arguments}).train()


def terms_of(method: KDNet) -> dict[str, float]:
    ((player, terms),) = method.losses(RandomBatches(method.modalities, method.available).batch(0, 0))
    assert player == "student"
    return {name: value.item() for name, value in terms.items()}


def plain(q: Tensor, p: Tensor) -> Tensor:
    """1 - Dice + BCE, region by region."""
    pairs = list(zip(q.unbind(1), p.unbind(1), strict=True))
    dice = [2 * (a * b).sum() / (a.sum() + b.sum()) for a, b in pairs]
    return 1 - torch.stack(dice).mean() + binary_cross_entropy(p, q)


def test_the_terms_in_plain_words() -> None:
    """Exclusive classes: the foreground channels of softmax(t / 5), softmax(s) and the one-hot reference."""
    method, batch = make(), BATCHES.batch(0, 0)
    t, f_t = method.teacher.with_features(batch.all)
    s, f_s = method.student.with_features(batch.available)
    q, p, y = (t / 5).softmax(1)[:, 1:], s.softmax(1)[:, 1:], torch.eye(4)[batch.labels].movedim(-1, 1)[:, 1:]
    a, b = f_t.c5.softmax(1), f_s.c5.softmax(1)
    terms = terms_of(method)
    assert terms["imitation"] == pytest.approx(0.75 * plain(q, p).item(), rel=1e-4)
    assert terms["latent"] == pytest.approx((a * (a / b).log()).sum().item(), rel=1e-4)
    assert terms["segmentation"] == pytest.approx(0.25 * plain(y, p).item(), rel=1e-4)


def test_sigmoids_of_regions_in_plain_words() -> None:
    """WT, TC and ET as sums of class probabilities; the teacher's log-odds divided by 5."""
    regions = ((1, 2, 3), (1, 3), (3,))
    method, batch = make(activation="sigmoid", regions=regions), BATCHES.batch(0, 0)

    def unions(x: Tensor) -> Tensor:
        return torch.stack([x[:, list(region)].sum(1) for region in regions], 1)

    q = (unions(method.teacher(batch.all).double().softmax(1)).logit() / 5).sigmoid()
    p = unions(method.student(batch.available).double().softmax(1))
    y = unions(torch.eye(4).double()[batch.labels].movedim(-1, 1))
    terms = terms_of(method)
    assert terms["imitation"] == pytest.approx(0.75 * plain(q, p).item(), rel=1e-4)
    assert terms["segmentation"] == pytest.approx(0.25 * plain(y, p).item(), rel=1e-4)


def test_terms_of_networks_that_say_nothing() -> None:
    """Logits 0: softmax 1/4 on both sides at any temperature, so with q = p = 1/4 Dice is 1/4 and BCE the entropy 0.5623.

    Latent maps 0: no divergence. Reference: of 32^3 voxels 12^3 - 8^3 are class 1, 8^3 - 4^3 class 2, 4^3 class 3; for n of N
    voxels Dice is 2 n/4 / (N/4 + n), BCE (n ln 4 + (N - n) ln 4/3) / N.
    """
    method = make()
    with torch.no_grad():
        for network in (method.teacher, method.student):
            for parameter in (*network.out.parameters(), *network.c5.norm2.parameters()):
                parameter.zero_()
    terms = terms_of(method)
    assert terms["imitation"] == pytest.approx(0.75 * (0.75 + 0.5623), abs=1e-4)
    assert terms["latent"] == pytest.approx(0, abs=1e-6)
    # n = 1216, 448, 64 of N = 32768: Dice 0.06463, 0.02593, 0.00388; BCE 0.32845, 0.30270, 0.28983
    assert terms["segmentation"] == pytest.approx(0.25 * (1 - 0.03148 + 0.30699), abs=1e-4)


@pytest.mark.parametrize("latent_over", ["channel", "spatial", "all"])
def test_a_student_that_is_its_teacher_has_no_latent_divergence(latent_over: str) -> None:
    method = make(AVAILABLE, AVAILABLE, latent_over=latent_over)
    assert terms_of(method)["latent"] > 1e-2
    method.teacher.load_state_dict(method.student.state_dict())
    assert terms_of(method)["latent"] == pytest.approx(0, abs=1e-5)


def test_the_weights_share_out_teacher_and_reference() -> None:
    whole, half, none = (terms_of(make(imitation_weight=weight)) for weight in (1.0, 0.5, 0.0))
    assert (whole["segmentation"], none["imitation"]) == (0, 0)
    assert whole["latent"] == half["latent"] == none["latent"]
    assert half["imitation"] == pytest.approx(whole["imitation"] / 2)
    assert half["segmentation"] == pytest.approx(none["segmentation"] / 2)
    assert terms_of(make(latent_weight=2.0))["latent"] == pytest.approx(2 * whole["latent"])


def test_the_reduction_is_a_matter_of_weight() -> None:
    """c5 of 32^3 voxels at width 2 holds 16 channels of 2^3 voxels."""
    summed, averaged = (terms_of(make(latent_reduction=how))["latent"] for how in ("batch", "mean"))
    assert summed == pytest.approx(averaged * 16 * 8)


def test_only_the_student_is_pulled() -> None:
    method = make()
    ((_, terms),) = method.losses(BATCHES.batch(0, 0))
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert method.student.d1.conv1.weight.grad.abs().sum() > 0


def test_the_teacher_is_frozen_and_silent_unless_told() -> None:
    assert not any(parameter.requires_grad for parameter in make().teacher.parameters())
    assert not make().teacher.training
    assert make(teacher_dropout=True).teacher.training
    assert not make(teacher_dropout=True).eval().teacher.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imitation_weight": 1.5}, "imitation_weight must be between 0 and 1, it is 1.5"),
        ({"temperature": 0}, "temperature 0.0 must be positive"),
        ({"latent_weight": -1}, "latent_weight -1.0 not negative"),
        ({"regions": []}, r"regions must each hold some, not all, of the classes 0 \.\.\. 3, they are \(\)"),
        ({"regions": [[1], []]}, r"regions .* they are \(\(1,\), \(\)\)"),
        ({"regions": [[0, 1, 2, 3]]}, "regions must each hold some, not all"),
        ({"regions": [[4]]}, r"of the classes 0 \.\.\. 3, they are \(\(4,\),\)"),
        ({"activation": "relu"}, "method.activation"),
        ({"latent_over": "time"}, "method.latent_over"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(KDNet, {"width": 2, **arguments}, "method")


@pytest.mark.parametrize("stage", ["brats", "demo"])
def test_the_recipe_of_kd_net_plus(stage: str) -> None:
    ours, had_net, student, control = (
        load_recipe(f"{stage}/{name}") for name in ("kd_net_plus", "had_net", "student", "control")
    )
    assert ours.data == had_net.data
    assert ours.start_from == {"teacher": had_net.start_from["teacher"]}
    assert (ours.method.arguments["imitation_weight"], ours.method.arguments["temperature"]) == (0.75, 5.0)
    assert ours.training["plateau"]["factor"] == 0.2
    epochs = {"brats": 500, "demo": student.training["epochs"] + control.training["epochs"]}
    assert ours.training["epochs"] == epochs[stage]
    method = build(KDNet, ours.method.arguments | {"width": 2}, "method")
    assert set(ours.start_from) < set(method.reads)
