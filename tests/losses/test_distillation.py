"""Losses of imitation, by hand and in plain words."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from modistill.errors import ModelError
from modistill.losses.distillation import (
    dice_and_cross_entropy,
    latent_divergence,
    region_logits,
    region_masks,
    soft_targets,
)

BRATS = ((1, 2, 3), (1, 3), (3,))
SEEDS = st.integers(0, 10_000)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def as_logits(*odds: float) -> Tensor:
    """One voxel whose classes have these odds."""
    return torch.tensor(odds).log().reshape(1, -1, 1)


@pytest.mark.parametrize("regions", [BRATS, ((1,), (2,), (3,))])
def test_a_regions_probability_is_the_sum_of_its_classes(regions: tuple[tuple[int, ...], ...]) -> None:
    logits = noise(2, 4, 3, 2)
    classes = logits.softmax(1)
    expected = torch.stack([sum(classes[:, c] for c in region) for region in regions], 1)
    torch.testing.assert_close(region_logits(logits, regions).sigmoid(), expected)
    for activation in ("softmax", "sigmoid"):
        torch.testing.assert_close(soft_targets(logits, regions, 1.0, activation), expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_only_differences_of_logits_count(activation: str) -> None:
    logits = noise(2, 4, 3, 2)
    shifted = logits + noise(2, 1, 3, 2, seed=1)
    torch.testing.assert_close(soft_targets(shifted, BRATS, 5.0, activation), soft_targets(logits, BRATS, 5.0, activation))


def test_regions_far_from_sure_and_sure_beyond_rounding() -> None:
    """Where a softmax rounds to 0 or 1, the log-odds still tell; and a gradient goes through."""
    logits = torch.tensor([[200.0, -200.0, -200.0]]).reshape(1, 3, 1).requires_grad_()
    found = region_logits(logits, [(0,), (1, 2)])
    torch.testing.assert_close(found.flatten(), torch.tensor([400 - log(2), log(2) - 400]))
    found.sum().backward()
    assert logits.grad.isfinite().all()


def test_masks_of_regions() -> None:
    labels = torch.tensor([[[0, 1], [2, 3]]])
    expected = [[[0, 1], [1, 1]], [[0, 1], [0, 1]], [[0, 0], [0, 1]]]
    assert region_masks(labels, BRATS).tolist() == [expected]


def test_soft_targets_by_hand() -> None:
    """Odds 1 : 32 : 1 at T = 5, where 32 = 2^5: among three classes 2 / (1 + 2 + 1); as a region, (32 / 2)^(1/5) to 1."""
    logits = as_logits(1, 32, 1)
    assert soft_targets(logits, [(1,)], 5.0, "softmax").item() == pytest.approx(1 / 2)
    assert soft_targets(logits, [(1,)], 5.0, "sigmoid").item() == pytest.approx(16**0.2 / (1 + 16**0.2))


def test_dice_and_cross_entropy_by_hand() -> None:
    """p = 3/4, 1/2 and q = 1, 0: Dice 2 (3/4) / (5/4 + 1), cross-entropy (-ln 3/4 - ln 1/2) / 2."""
    logits, targets = torch.tensor([[[log(3), 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    expected = 1 - 1.5 / 2.25 + (log(4 / 3) + log(2)) / 2
    assert dice_and_cross_entropy(logits, targets).item() == pytest.approx(expected, abs=1e-5)


def test_dice_and_cross_entropy_of_soft_targets_by_hand() -> None:
    """p = q = 1/4 everywhere: Dice 2/16 / (1/4 + 1/4), cross-entropy the entropy of 1/4."""
    logits, targets = torch.full((1, 1, 4), -log(3)), torch.full((1, 1, 4), 0.25)
    expected = 1 - 1 / 4 - 0.25 * log(0.25) - 0.75 * log(0.75)
    assert dice_and_cross_entropy(logits, targets).item() == pytest.approx(expected, abs=1e-4)


def plain_divergence(student: Tensor, teacher: Tensor, over: str, reduction: str) -> float:
    """Distribution by distribution, number by number."""
    total = 0.0
    for s, t in zip(student.flatten(2), teacher.flatten(2), strict=True):
        pairs = {"channel": zip(s.T, t.T, strict=True), "spatial": zip(s, t, strict=True), "all": [(s.flatten(), t.flatten())]}
        for one, other in pairs[over]:
            q, p = ([exp(x) for x in row.tolist()] for row in (other, one))
            total += sum(a / sum(q) * log(a / sum(q) / (b / sum(p))) for a, b in zip(q, p, strict=True))
    return total / (len(student) if reduction == "batch" else student.numel())


@pytest.mark.parametrize("reduction", ["batch", "mean"])
@pytest.mark.parametrize("over", ["channel", "spatial", "all"])
@pytest.mark.parametrize("size", [(3, 2), (2, 3, 2)])
def test_latent_divergence_in_plain_words(size: tuple[int, ...], over: str, reduction: str) -> None:
    student, teacher = noise(2, 5, *size), noise(2, 5, *size, seed=1)
    found = latent_divergence(student, teacher, over, reduction)
    assert found.item() == pytest.approx(plain_divergence(student, teacher, over, reduction))
    assert latent_divergence(teacher, teacher, over, reduction).item() == pytest.approx(0, abs=1e-12)


def test_latent_divergence_by_hand() -> None:
    """Teacher 3/4, 1/4 and student 1/2, 1/2, in that direction."""
    student, teacher = as_logits(1, 1), as_logits(3, 1)
    expected = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert latent_divergence(student, teacher).item() == pytest.approx(expected)
    assert latent_divergence(student, teacher, "all", "mean").item() == pytest.approx(expected / 2)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, batch=st.integers(2, 4), over=st.sampled_from(["channel", "spatial", "all"]))
def test_a_batch_is_the_mean_of_its_parts(seed: int, batch: int, over: str) -> None:
    one, other = noise(batch, 3, 4, 2, seed=seed), noise(batch, 3, 4, 2, seed=seed + 1)
    losses = (
        lambda x, y: dice_and_cross_entropy(x, y.sigmoid()),
        lambda x, y: latent_divergence(x, y, over, "batch"),
        lambda x, y: latent_divergence(x, y, over, "mean"),
    )
    for loss in losses:
        parts = [loss(one[n : n + 1], other[n : n + 1]) for n in range(batch)]
        torch.testing.assert_close(loss(one, other), torch.stack(parts).mean())


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_exclusive_classes_agree_with_pytorchs_softmax(seed: int) -> None:
    logits, targets = noise(2, 4, 3, seed=seed), noise(2, 3, 3, seed=seed + 1).sigmoid()
    p = logits.softmax(1)[:, 1:]
    dice = (2 * (p * targets).sum(2) + 1e-5) / ((p + targets).sum(2) + 1e-5)
    expected = 1 - dice.mean() + functional.binary_cross_entropy(p, targets)
    torch.testing.assert_close(dice_and_cross_entropy(region_logits(logits, [(1,), (2,), (3,)]), targets), expected)


def test_all_is_computed_in_single_precision_at_least() -> None:
    one, other = noise(1, 4, 3, 2).bfloat16(), noise(1, 4, 3, 2, seed=1).bfloat16()
    found = [
        region_logits(one, BRATS),
        soft_targets(one, BRATS, 5.0),
        dice_and_cross_entropy(one, other.sigmoid()),
        latent_divergence(one, other),
    ]
    assert [value.dtype for value in found] == [torch.float32] * 4


def test_numerical_gradients() -> None:
    one, other = noise(2, 4, 3).requires_grad_(), noise(2, 4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: dice_and_cross_entropy(region_logits(x, BRATS), other[:, :3].sigmoid()), one)
    assert torch.autograd.gradcheck(lambda x: latent_divergence(x, other), one)


def test_maps_of_different_shape_are_not_broadcast() -> None:
    with pytest.raises(ModelError, match=r"\(2, 4, 3\) \(student\) and \(1, 4, 3\) \(teacher\) \(build both"):
        latent_divergence(noise(2, 4, 3), noise(1, 4, 3))
