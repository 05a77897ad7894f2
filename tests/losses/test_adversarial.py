import pytest
import torch

from modistill.losses.adversarial import accuracy, least_squares


def test_least_squares_by_hand():
    x = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    assert least_squares.real(x).item() == (1 + 0 + 1 + 4) / 4
    assert least_squares.fake(x).item() == (0 + 1 + 4 + 1) / 4


def test_gradient_by_hand():
    x = torch.tensor([0.5, 2.0], requires_grad=True)
    least_squares.real(x).backward()
    assert x.grad.tolist() == [-0.5, 1.0]  # 2 (x - 1) / 2


@pytest.mark.parametrize(
    ("on_real", "on_fake", "expected"),
    [
        ([1.0, 1.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [1.0, 1.0], 0.0),
        ([0.5], [0.5], 1.0),  # the cut counts on both sides
        ([0.9, 0.1], [0.1], 0.75),
        ([0.9, 0.1, 0.2], [0.1, 0.8, 0.9], 1 / 3),
    ],
)
def test_accuracy_by_hand(on_real, on_fake, expected):
    result = accuracy(torch.tensor(on_real, requires_grad=True), torch.tensor(on_fake))
    assert result.item() == pytest.approx(expected)
    assert not result.requires_grad


def test_another_cut():
    assert accuracy(torch.tensor([0.2]), torch.tensor([0.2]), cut=0.1).item() == 0.5
