"""DRIT's terms, each by a value worked out by hand."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from modistill.errors import ModelError
from modistill.losses.drit import binary_cross_entropy, content_size, latent_regression, mode_seeking, style_divergence
from modistill.losses.gaussian import Gaussian


@pytest.mark.parametrize(
    ("target", "expected"), [(1, -log(3 / 4)), (0, -log(1 / 4)), (0.5, -(log(3 / 4) + log(1 / 4)) / 2)], ids=str
)
def test_cross_entropy_of_a_probability_of_three_quarters(target: float, expected: float) -> None:
    logits = torch.full((2, 1, 3, 3), log(3))
    assert binary_cross_entropy(logits, target).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_is_a_mean_over_patches_and_a_sum_over_scales() -> None:
    fine, coarse = torch.tensor([log(3), -log(3), 0.0]), torch.zeros(2, 1)
    of_fine = -(log(3 / 4) + log(1 / 4) + log(1 / 2)) / 3
    assert binary_cross_entropy(fine, 1).item() == pytest.approx(of_fine, rel=1e-6)
    assert binary_cross_entropy((fine, coarse), 1).item() == pytest.approx(of_fine + log(2), rel=1e-6)


def test_a_critic_that_cannot_tell_is_what_the_encoders_aim_at() -> None:
    """The least for 1/2 is log 2, at 0; its gradient (sigma - 1/2) / n pulls there from either side."""
    x = torch.tensor([0.0, log(3), -log(3)], requires_grad=True)
    binary_cross_entropy(x, 0.5).backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1 / 12, -1 / 12]))
    assert binary_cross_entropy(torch.zeros(3), 0.5).item() == pytest.approx(log(2))


def test_cross_entropy_of_sure_critics_is_finite() -> None:
    x = torch.tensor([1000.0], requires_grad=True)
    loss = binary_cross_entropy(x, 0)
    loss.backward()
    assert (loss.item(), x.grad.item()) == (1000, 1)


def test_divergence_of_a_style_by_hand() -> None:
    """A mean of 2 costs 2; a variance of 4 costs (4 - log 4 - 1) / 2; the second case is the prior itself."""
    style = Gaussian(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, log(4)], [0.0, 0.0]]))
    assert style_divergence(style).item() == pytest.approx((2 + (3 - log(4)) / 2) / 2, rel=1e-6)


def test_divergence_of_a_style_is_pytorchs() -> None:
    torch.manual_seed(0)
    mean, logvar = torch.randn(2, 5, 8, dtype=torch.double)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(style_divergence(Gaussian(mean, logvar)), expected)


def test_size_of_a_content_by_hand() -> None:
    assert content_size(torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]]])).item() == (1 + 4 + 9) / 4


def test_latent_regression_by_hand() -> None:
    mean, logvar = torch.tensor([[0.0, 1.0], [2.0, 2.0]], requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    loss = latent_regression(Gaussian(mean, logvar), torch.tensor([[1.0, -2.0], [2.0, 0.0]]))
    assert loss.item() == (1 + 3 + 0 + 2) / 4
    loss.backward()
    assert mean.grad.tolist() == [[-0.25, 0.25], [0, 0.25]]
    assert logvar.grad is None


def test_mode_seeking_by_hand() -> None:
    """Images differ by 1/4 in the mean, codes by 2: 1 / (1/8 + 1e-5)."""
    images = torch.zeros(2, 1, 2, 2), torch.tensor([0.0, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    codes = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [2.0, -2.0]])
    assert mode_seeking(images, codes).item() == pytest.approx(1 / (1 / 8 + 1e-5), rel=1e-6)


def test_mode_seeking_of_equal_images_is_finite_and_falls_as_they_part() -> None:
    codes = torch.zeros(1, 2), torch.ones(1, 2)
    image = torch.zeros(1, 1, 4)
    assert mode_seeking((image, image), codes).item() == pytest.approx(1e5)
    assert mode_seeking((image, image + 1), codes) < mode_seeking((image, image + 0.5), codes)


def test_everything_is_computed_in_single_precision_at_least() -> None:
    half = torch.ones(2, 4, dtype=torch.bfloat16)
    style = Gaussian(half, half)
    values = [
        binary_cross_entropy(half, 1),
        style_divergence(style),
        content_size(half),
        latent_regression(style, half),
        mode_seeking((half, 0 * half), (half, 0 * half)),
    ]
    assert {value.dtype for value in values} == {torch.float32}
    assert all(value.ndim == 0 for value in values)


def test_pairs_of_other_shapes_are_refused() -> None:
    code = torch.zeros(2, 3)
    with pytest.raises(ModelError, match=r"^\(2, 3\) cannot be compared with \(1, 3\) \(give pairs of one shape"):
        latent_regression(Gaussian(code, code), code[:1])
    for images, codes in (((code, code[:1]), (code, code)), ((code, code), (code, code[:, :2]))):
        with pytest.raises(ModelError, match="cannot be compared with"):
            mode_seeking(images, codes)
