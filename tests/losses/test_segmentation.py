from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from modistill.losses.segmentation import decayed, weighted_cross_entropy


def test_by_hand():
    # Two voxels, two classes: nll ln(1 + e^-1) for the first, ln 2 for the second; weights 1 and 3.
    logits, labels = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.tensor([[0, 1]])
    expected = (log(1 + exp(-1)) + 3 * log(2)) / 4
    assert weighted_cross_entropy(logits, labels, torch.tensor([1.0, 3.0])).item() == pytest.approx(expected)


def random(batch, classes=4, size=(3, 4, 2), seed=0):
    torch.manual_seed(seed)
    return torch.randn(batch, classes, *size, dtype=torch.double), torch.randint(classes, (batch, *size))


def test_one_sample_is_pytorchs_weighted_mean():
    logits, labels = random(1)
    weights = torch.tensor([1.0, 59.4507, 23.3190, 71.8481], dtype=torch.double)
    expected = functional.cross_entropy(logits, labels, weights)
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights), expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), batch=st.integers(2, 4))
def test_a_batch_is_the_mean_of_its_parts(seed, batch):
    logits, labels = random(batch, seed=seed)
    weights = torch.tensor([1.0, 50.0, 20.0, 7.0], dtype=torch.double)
    parts = [weighted_cross_entropy(logits[n : n + 1], labels[n : n + 1], weights) for n in range(batch)]
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights), torch.stack(parts).mean())


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.01, 100))
def test_only_ratios_of_weights_count(scale):
    logits, labels = random(2)
    weights = torch.tensor([1.0, 50.0, 20.0, 7.0], dtype=torch.double)
    torch.testing.assert_close(
        weighted_cross_entropy(logits, labels, scale * weights), weighted_cross_entropy(logits, labels, weights)
    )


def test_is_computed_in_single_precision_at_least():
    logits, labels = random(1)
    loss = weighted_cross_entropy(logits.bfloat16(), labels, torch.ones(4))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, functional.cross_entropy(logits.bfloat16().float(), labels))


def test_memory_order_does_not_matter():
    logits, labels = random(2)
    turned = logits.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(
        weighted_cross_entropy(turned, labels, torch.ones(4)), weighted_cross_entropy(logits, labels, torch.ones(4))
    )


def test_numerical_gradient():
    logits, labels = random(2, size=(3,))
    weights = torch.tensor([1.0, 5.0, 2.0, 7.0], dtype=torch.double)
    assert torch.autograd.gradcheck(lambda x: weighted_cross_entropy(x, labels, weights), logits.requires_grad_())


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, [1.0, 59.4507, 23.3190, 71.8481]),
        (50, [1.0, 21.65, 8.49, 26.16]),
        (100, [1.0, 7.88, 3.09, 9.53]),
        (150, [1.0, 2.87, 1.13, 3.47]),
        (200, [1.0, 1.05, 1.0, 1.26]),
        (212, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_decay(epoch, expected):
    weights = torch.tensor([1.0, 59.4507, 23.3190, 71.8481])
    torch.testing.assert_close(decayed(weights, epoch), torch.tensor(expected), rtol=0, atol=0.006)


def test_first_epochs_without_weights():
    weights = torch.tensor([1.0, 59.4507, 23.3190, 71.8481], dtype=torch.double)
    first = [next(e for e in range(400) if decayed(weights, e)[c] == 1) for c in range(4)]
    assert first == [0, 203, 156, 212]
