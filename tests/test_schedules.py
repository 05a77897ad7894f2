"""Learning rates that follow the steps made, also across an interruption."""

from __future__ import annotations

import io

import pytest
import torch

from modistill.schedules import stepped_adam


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
