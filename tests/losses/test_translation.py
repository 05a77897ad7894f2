"""Losses of translators, by hand; the log form of the adversarial loss, beside which they stand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from modistill.errors import ModelError
from modistill.losses.adversarial import log_likelihood
from modistill.losses.translation import cycle_loss, identity_loss

BOTH = pytest.mark.parametrize("loss", [cycle_loss, identity_loss])


@BOTH
def test_mean_absolute_difference_by_hand(loss):
    one, other = torch.tensor([[[[0.5, -1.0]]], [[[0.0, 1.0]]]]), torch.tensor([[[[1.0, 1.0]]], [[[0.0, -0.5]]]])
    assert loss(one, other).item() == (0.5 + 2 + 0 + 1.5) / 4
    assert loss(other, other).item() == 0


@BOTH
def test_gradient_by_hand(loss):
    """The sign of the difference, over the number of voxels; to both images."""
    one, other = torch.tensor([0.5, -1.0], requires_grad=True), torch.tensor([0.0, 1.0], requires_grad=True)
    loss(one, other).backward()
    assert one.grad.tolist() == [0.5, -0.5]
    assert other.grad.tolist() == [-0.5, 0.5]


@BOTH
def test_single_precision_at_least(loss):
    """1000 differences of 1/256 beside one of 100: in bfloat16, with 8 bits, the sum would lose them."""
    one = torch.full((1001,), 1 / 256, dtype=torch.bfloat16)
    one[0] = 100
    found = loss(one, torch.zeros_like(one))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx((100 + 1000 / 256) / 1001)
    assert loss(one.double(), one.double()).dtype == torch.double


@BOTH
def test_images_of_another_size_are_not_broadcast(loss):
    with pytest.raises(
        ModelError, match=r"images of \(1, 1, 8\) and their translation of \(2, 1, 8\) \(a translator must keep"
    ):
        loss(torch.zeros(2, 1, 8), torch.zeros(1, 1, 8))


def test_log_likelihood_by_hand():
    """Odds of 3 to 1 and of 1 to 1 for being real."""
    x = torch.tensor([[log(3), 0.0]])
    assert log_likelihood.real(x).item() == pytest.approx((log(4 / 3) + log(2)) / 2)
    assert log_likelihood.fake(x).item() == pytest.approx((log(4) + log(2)) / 2)


def test_log_likelihood_where_the_critic_is_sure():
    """No logarithm of zero: a logit of 200 costs 200, and its gradient is one."""
    x = torch.tensor([-200.0], requires_grad=True)
    loss = log_likelihood.real(x)
    loss.backward()
    assert (loss.item(), x.grad.item()) == (200, -1)
    assert log_likelihood.fake(x).item() == 0


def test_gradient_of_the_log_likelihood_by_hand():
    """D - 1 for real, D for fake."""
    for half, expected in ((log_likelihood.real, 1 / (1 + exp(-0.7)) - 1), (log_likelihood.fake, 1 / (1 + exp(-0.7)))):
        x = torch.tensor([0.7], requires_grad=True)
        half(x).backward()
        assert x.grad.item() == pytest.approx(expected)
    assert log_likelihood.real(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
