"""Products of Gaussian experts and their divergences, against the formulas written out case by case."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from modistill.losses import gaussian
from modistill.losses.gaussian import Gaussian, product_of_experts, subset_divergence


def experts(batch: int = 2, count: int = 3, size: tuple[int, ...] = (2, 4, 3, 2), seed: int = 0) -> list[Gaussian]:
    torch.manual_seed(seed)
    values = torch.randn(count, 2, batch, *size, dtype=torch.double)
    return [Gaussian(mean.requires_grad_(), logvar.requires_grad_()) for mean, logvar in values.unbind()]


def plain_product(found: list[Gaussian], case: int, subset: tuple[int, ...]) -> Gaussian:
    precisions = {m: 1 / (found[m].logvar[case].exp() + 1e-7) for m in subset}
    precision = 1 + sum(precisions.values())
    mean = sum(t * found[m].mean[case] for m, t in precisions.items()) / precision
    return Gaussian(mean, (1 / precision + 1e-7).log())


def plain_kl(p: Gaussian, q: Gaussian) -> Tensor:
    def normal(one: Gaussian) -> Normal:
        return Normal(one.mean, (one.logvar / 2).exp())

    return reference_kl(normal(p), normal(q)).mean()


def plain_divergence(found: list[Gaussian], presence: Tensor, chosen: Tensor) -> Tensor:
    standard = Gaussian(torch.zeros((), dtype=torch.double), torch.zeros((), dtype=torch.double))
    totals = []
    for case in range(len(presence)):
        there = presence[case].nonzero().flatten().tolist()
        subsets = [subset for n in range(1, len(there) + 1) for subset in combinations(there, n)]
        own = tuple(chosen[case].nonzero().flatten().tolist())
        q = plain_product(found, case, own)
        products = {subset: plain_product(found, case, subset) for subset in subsets}
        others = [plain_kl(q, product) for subset, product in products.items() if subset != own]
        prior = [plain_kl(product, standard) for product in products.values()]
        totals.append(sum(others) / max(len(others), 1) + sum(prior) / len(prior))
    return torch.stack(totals).mean()


def test_a_product_by_hand() -> None:
    # Variances 1 and 1/3 and the prior's 1: precisions 1 + 3 + 1; mean (1 * 2 + 3 * 1 + 1 * 0) / 5.
    two = [Gaussian(torch.tensor([[2.0]]), torch.zeros(1, 1)), Gaussian(torch.ones(1, 1), torch.tensor([[1 / 3]]).log())]
    product = product_of_experts(two, torch.tensor([[True, True]]))
    assert product.mean.item() == pytest.approx(1.0, rel=1e-5)
    assert product.logvar.exp().item() == pytest.approx(0.2, rel=1e-5)
    second = product_of_experts(two, torch.tensor([[False, True]]))
    assert (second.mean.item(), second.logvar.exp().item()) == pytest.approx((0.75, 0.25), rel=1e-5)


def test_a_product_is_that_of_each_case() -> None:
    found = experts(batch=3)
    presence = torch.tensor([[True, True, True], [False, True, False], [True, False, True]])
    product = product_of_experts(found, presence)
    for case, subset in enumerate([(0, 1, 2), (1,), (0, 2)]):
        expected = plain_product(found, case, subset)
        torch.testing.assert_close(product.mean[case], expected.mean)
        torch.testing.assert_close(product.logvar[case], expected.logvar)


def test_an_absent_expert_changes_no_bit_and_gets_no_gradient() -> None:
    presence, found = torch.tensor([[True, False, True]] * 2), experts()
    product = product_of_experts(found, presence)
    other = product_of_experts([found[0], Gaussian(found[1].mean * 1e6, found[1].logvar + 50), found[2]], presence)
    assert torch.equal(product.mean, other.mean)
    assert torch.equal(product.logvar, other.logvar)
    divergence = subset_divergence(found, presence, presence)
    (product.mean.sum() + product.logvar.sum() + divergence).backward()
    assert not found[1].mean.grad.any()
    assert not found[1].logvar.grad.any()
    assert found[0].mean.grad.any()


@pytest.mark.parametrize("logvar", [-50.0, 50.0])
def test_the_surest_and_the_least_sure_experts_have_finite_gradients(logvar: float) -> None:
    mean, extreme = torch.ones(1, 1, 8, 8, requires_grad=True), torch.full((1, 1, 8, 8), logvar, requires_grad=True)
    presence = torch.ones(1, 2, dtype=torch.bool)
    two = [Gaussian(mean, extreme), Gaussian(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))]
    product = product_of_experts(two, presence)
    value = product.sample(torch.ones(1)).sum() + subset_divergence(two, presence, torch.tensor([[True, False]]))
    value.backward()
    assert value.isfinite()
    assert mean.grad.isfinite().all()
    assert extreme.grad.isfinite().all()


@pytest.mark.parametrize("slab", [1, 7, 2**16])
@pytest.mark.parametrize("size", [(2, 4, 3, 2), (2, 5, 3)])
def test_all_subsets_at_once_are_each_subset_in_turn(slab: int, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian, "_SLAB", slab)
    found = experts(batch=4, count=4, size=size)
    presence = torch.tensor([[True] * 4, [True] * 4, [True, False, True, True], [False, False, True, False]])
    chosen = torch.tensor([[True] * 4, [False, True, False, True], [True, False, False, False], [False, False, True, False]])
    ours, theirs = subset_divergence(found, presence, chosen), plain_divergence(found, presence, chosen)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    given_values = [value for expert in found for value in expert]
    mine, other = torch.autograd.grad(ours, given_values), torch.autograd.grad(theirs, given_values)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_a_single_expert_is_compared_with_the_prior_alone() -> None:
    """Variance 1 and mean 2 with the prior: mean 1, variance 1/2; KL to N(0, 1) is (1/2 + 1 - 1 + ln 2) / 2."""
    one = [Gaussian(torch.full((1, 1, 8, 8), 2.0), torch.zeros(1, 1, 8, 8))]
    there = torch.ones(1, 1, dtype=torch.bool)
    expected = (0.5 + torch.tensor(2.0).log()) / 2
    torch.testing.assert_close(subset_divergence(one, there, there), expected, rtol=1e-5, atol=0)


def test_half_precision_is_widened_also_under_autocast() -> None:
    found = [Gaussian(*(value.detach().bfloat16() for value in expert)) for expert in experts()]
    there = torch.ones(2, 3, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        product, divergence = product_of_experts(found, there), subset_divergence(found, there, there)
    assert {product.mean.dtype, product.logvar.dtype, divergence.dtype} == {torch.float32}
    expected = plain_divergence([Gaussian(*(value.double() for value in expert)) for expert in found], there, there)
    torch.testing.assert_close(divergence.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_draw_has_the_mean_and_the_deviation_it_is_told_to() -> None:
    torch.manual_seed(0)
    one = Gaussian(torch.full((2, 200_000), 3.0), torch.full((2, 200_000), 4.0).log())
    drawn = one.sample(torch.tensor([1.0, 0.0]))
    assert (drawn[0].mean().item(), drawn[0].std().item()) == pytest.approx((3.0, 2.0), abs=0.02)
    assert torch.equal(drawn[1], one.mean[1])
