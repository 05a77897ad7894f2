"""Losses at every scale of a decoder: weights, Dice and cross-entropy by hand, labels from the nearest voxel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from modistill.losses.deep_supervision import deep_cross_entropy, deep_dice, deep_soft_labels, nearest, scale_weights


def deep_dice_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The term of a single scale."""
    return deep_dice([logits], labels)


def test_weights_of_the_scales() -> None:
    """nnU-Net's for five scales: 1, 1/2, 1/4, 1/8, the coarsest set to zero, divided by their sum 15/8."""
    assert scale_weights(5) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])
    assert (scale_weights(2), scale_weights(1)) == ([1.0, 0.0], [1.0])


def test_dice_loss_by_hand() -> None:
    """Two voxels, labels 0 and 1, all probabilities 1/2: Dice of class 1 is 2 * 0.5 / (1 + 1) = 0.5."""
    assert deep_dice_of(torch.zeros(1, 2, 2), torch.tensor([[0, 1]])).item() == pytest.approx(0.5, abs=1e-5)


def test_dice_counts_each_sample_and_no_background() -> None:
    """A sample found perfectly (a class that is nowhere counts 1) and one missed altogether: 0 and 1, mean 1/2."""
    labels = torch.tensor([[0, 1], [1, 1]])
    logits = torch.tensor([[[50.0, -50.0], [-50.0, 50.0], [-50.0, -50.0]], [[50.0, 50.0], [-50.0, -50.0], [-50.0, -50.0]]])
    assert deep_dice_of(logits[:1], labels[:1]).item() == pytest.approx(0, abs=1e-4)
    assert deep_dice_of(logits[1:], labels[1:]).item() == pytest.approx(0.5, abs=1e-4)  # class 2 is nowhere: Dice 1
    assert deep_dice_of(logits, labels).item() == pytest.approx(0.25, abs=1e-4)


def test_labels_come_from_the_nearest_voxel() -> None:
    """Half the size: the centre of voxel j lies between 2j and 2j + 1; nnU-Net ("nearest-exact") takes the second."""
    labels = torch.arange(6)[None, :, None] * 10 + torch.arange(4)
    assert nearest(labels, (3, 2)).tolist() == [[[11, 13], [31, 33], [51, 53]]]
    assert torch.equal(nearest(labels, (6, 4)), labels)


def test_scales_are_weighed_and_the_coarsest_does_not_count() -> None:
    """Probabilities of 3/4 and 1/2 at two scales of three, weights 2/3 and 1/3."""
    labels = torch.ones(1, 4, 4, dtype=torch.long)
    fine, middle, coarse = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2), torch.full((1, 2, 1, 1), 9.0)
    fine[:, 1] = math.log(3)
    expected = -2 / 3 * math.log(0.75) - 1 / 3 * math.log(0.5)
    assert deep_cross_entropy([fine, middle, coarse], labels).item() == pytest.approx(expected)
    assert deep_cross_entropy([fine, middle, -coarse], labels).item() == pytest.approx(expected)


def test_soft_labels_teach_the_student_alone() -> None:
    """At T = 2 odds of 9 become 3: cross-entropy of (3/4, 1/4) with an undecided student is ln 2, times T squared."""
    student, teacher = torch.zeros(1, 2, 1, 1, requires_grad=True), torch.zeros(1, 2, 1, 1)
    teacher[:, 0] = math.log(9)
    teacher.requires_grad_()
    loss = deep_soft_labels([student], [teacher], temperature=2.0)
    assert loss.item() == pytest.approx(4 * math.log(2))
    loss.backward()
    assert teacher.grad is None
    assert student.grad.flatten().tolist() == pytest.approx([4 * (0.5 - 0.75) / 2, 4 * (0.5 - 0.25) / 2])
