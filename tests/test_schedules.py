"""Learning rates that follow the steps made, also across an interruption."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from modistill.errors import TrainingStopped
from modistill.schedules import PolynomialSGD, stepped_adam


def steps(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, numbers: range) -> list[float]:
    """The rate of every step; step n has a gradient of 1 + n."""
    rates = []
    for n in numbers:
        weight.grad = torch.full_like(weight, 1.0 + n)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_the_papers_rates() -> None:
    """1e-3 / 4^floor(n / 10000), here with 3 for 10000; a division by 4 is exact."""
    weight = torch.nn.Parameter(torch.zeros(2))
    found = steps(stepped_adam([weight], lr=1e-3, divisor=4, every=3), weight, range(10))
    assert found == [1e-3 / 4 ** (n // 3) for n in range(10)]


def test_it_steps_as_adam_does_at_each_rate() -> None:
    one, two = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    ours, plain = stepped_adam([one], lr=1e-2, divisor=10, every=2, betas=(0.5, 0.9)), torch.optim.Adam([two], betas=(0.5, 0.9))
    for n in range(5):
        plain.param_groups[0]["lr"] = 1e-2 / 10 ** (n // 2)
        one.grad, two.grad = torch.full((2,), n - 2.0), torch.full((2,), n - 2.0)
        ours.step()
        plain.step()
        torch.testing.assert_close(one, two)


def test_interrupted_and_resumed_equals_uninterrupted() -> None:
    whole, part = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    expected = steps(stepped_adam([whole], lr=0.1, divisor=3, every=2), whole, range(7))
    first = stepped_adam([part], lr=0.1, divisor=3, every=2)
    found = steps(first, part, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = stepped_adam([part], lr=0.1, divisor=3, every=2)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert found + steps(second, part, range(3, 7)) == expected
    assert torch.equal(part, whole)


def test_another_schedule_is_kept() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = stepped_adam([weight], lr=1.0, divisor=4, every=2)
    steps(optimizer, weight, range(2))
    optimizer.param_groups[0]["lr"] /= 2
    assert steps(optimizer, weight, range(2, 3)) == [0.125]


@pytest.mark.parametrize(("divisor", "every"), [(0, 10), (-1, 10), (4, 0)])
def test_a_schedule_without_sense_is_refused(divisor: float, every: int) -> None:
    with pytest.raises(ValueError, match="positive divisor"):
        stepped_adam([torch.nn.Parameter(torch.zeros(1))], lr=1, divisor=divisor, every=every)


def in_epochs(sgd: PolynomialSGD, optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, numbers: range) -> list[float]:
    """The rate of every epoch, of two steps each."""
    rates = []
    for epoch in numbers:
        sgd.begin(epoch)
        rates += steps(optimizer, weight, range(2 * epoch, 2 * epoch + 2))[1:]
    return rates


def test_the_rates_of_nnunet() -> None:
    """0.01 (1 - e / 1000)^0.9: 0.01 in the first epoch, 0.005359 in the middle, 1.995e-5 in the last."""
    weight, sgd = torch.nn.Parameter(torch.zeros(1)), PolynomialSGD(1000)
    optimizer = sgd([weight])
    found = [in_epochs(sgd, optimizer, weight, range(epoch, epoch + 1))[0] for epoch in (0, 500, 999)]
    assert found == pytest.approx([0.01, 0.00535887, 1.99526e-5], rel=1e-5)


def test_it_steps_as_sgd_does_at_each_rate() -> None:
    one, two = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    sgd = PolynomialSGD(4, lr=0.1, momentum=0.9, weight_decay=0.01, power=2)
    ours, plain = sgd([one]), torch.optim.SGD([two], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for epoch in range(4):
        sgd.begin(epoch)
        plain.param_groups[0]["lr"] = 0.1 * (1 - epoch / 4) ** 2
        one.grad, two.grad = torch.full((3,), epoch - 1.0), torch.full((3,), epoch - 1.0)
        ours.step()
        plain.step()
        torch.testing.assert_close(one, two)


def test_several_optimisers_follow_one_epoch() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    sgd = PolynomialSGD(2, lr=1.0, power=1)
    optimizers = [sgd([weight]) for weight in weights]
    sgd.begin(1)
    assert [steps(*pair, range(1)) for pair in zip(optimizers, weights, strict=True)] == [[0.5], [0.5]]
    other = copy.deepcopy(sgd)  # of a copied method
    other.begin(0)
    assert steps(optimizers[0], weights[0], range(1)) == [0.5]


def test_epochs_interrupted_and_resumed_equal_uninterrupted() -> None:
    whole, part = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    sgd = PolynomialSGD(5, lr=0.1)
    expected = in_epochs(sgd, sgd([whole]), whole, range(5))
    before = PolynomialSGD(5, lr=0.1)
    first = before([part])
    found = in_epochs(before, first, part, range(2))
    after = PolynomialSGD(5, lr=0.1)
    second = after([part])
    second.load_state_dict(first.state_dict())
    assert found + in_epochs(after, second, part, range(2, 5)) == expected
    assert torch.equal(part, whole)


def test_there_is_no_epoch_after_the_last() -> None:
    sgd = PolynomialSGD(3)
    sgd.begin(2)
    with pytest.raises(TrainingStopped, match="zero after 3 epochs"):
        sgd.begin(3)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"momentum": 0.0}, {"momentum": 1.0}])
def test_a_polynomial_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PolynomialSGD(**{"epochs": 2} | wrong)
