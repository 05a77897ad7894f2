"""Windows: what goes in comes out again, whatever the window, the overlap and the batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modistill.errors import ModelError, RecipeError
from modistill.inference.windows import blend_windows, count_windows, predict_windows

SIZES = st.tuples(*[st.integers(3, 14)] * 3)
OVERLAPS = st.sampled_from([0.0, 0.25, 0.5, 0.7])


def one_by_one(classes=3, channels=2):
    torch.manual_seed(1)
    return torch.nn.Conv3d(channels, classes, 1)


@settings(max_examples=30, deadline=None)
@given(size=SIZES, window=SIZES, overlap=OVERLAPS, batch=st.integers(1, 4))
def test_the_identity_gives_the_volume_back(size, window, overlap, batch):
    images = torch.randn(2, *size)
    calls = []
    blended = blend_windows(
        lambda patches: patches.clone(),
        images,
        window=window,
        overlap=overlap,
        batch=batch,
        on_window=lambda *told: calls.append(told),
    )
    torch.testing.assert_close(blended, images, rtol=1e-5, atol=1e-5)
    assert calls[-1] == (count_windows(size, window, overlap),) * 2


@settings(max_examples=20, deadline=None)
@given(size=SIZES, window=SIZES, overlap=OVERLAPS, mirror=st.sampled_from([(), (0,), (1, 2), (0, 1, 2)]))
def test_a_constant_gives_that_constant(size, window, overlap, mirror):
    logits = torch.tensor([0.3, -1.2, 2.0]).view(1, 3, 1, 1, 1)
    found = predict_windows(
        lambda patches: logits.expand(len(patches), 3, *patches.shape[2:]),
        torch.zeros(2, *size),
        window=window,
        overlap=overlap,
        mirror=mirror,
    )
    assert found.shape == (3, *size)
    torch.testing.assert_close(found, logits[0].softmax(0).expand(3, *size), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [(8, 8, 8), (5, 9, 30), (64, 64, 64)])
def test_a_network_without_neighbourhood_sees_no_windows(window):
    network, images = one_by_one(), torch.randn(2, 13, 17, 11)
    whole = predict_windows(network, images)
    torch.testing.assert_close(predict_windows(network, images, window=window), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole, network(images[None])[0].softmax(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(whole.sum(0), torch.ones(13, 17, 11))


def test_windows_in_a_batch_change_nothing():
    torch.manual_seed(0)
    network, images = torch.nn.Conv3d(2, 3, 3, padding=1), torch.randn(2, 13, 17, 11)
    alone, together = (predict_windows(network, images, window=(8, 8, 8), batch=batch) for batch in (1, 5))
    torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirroring_makes_the_answer_symmetric(axis):
    torch.manual_seed(0)
    network, images = torch.nn.Conv3d(1, 2, 3, padding=1), torch.randn(1, 8, 8, 8)
    mirrored = predict_windows(network, images.flip(axis + 1), mirror=(axis,)).flip(axis + 1)
    torch.testing.assert_close(predict_windows(network, images, mirror=(axis,)), mirrored)
    assert not torch.allclose(predict_windows(network, images), mirrored, atol=1e-3)
    by_hand = sum(network(images.flip(axes)[None])[0].softmax(0).flip(axes) for axes in ((), (axis + 1,))) / 2
    torch.testing.assert_close(mirrored, by_hand)


def test_small_volumes_are_padded_in_the_middle_and_cut_back():
    sizes = []

    def seen(patches):
        sizes.append(tuple(patches.shape[2:]))
        return patches

    images = torch.arange(1.0, 61).view(1, 3, 4, 5)
    assert torch.equal(blend_windows(seen, images, minimum=(8, 8, 4)), images)
    assert sizes == [(8, 8, 5)]


def test_a_window_is_nowhere_larger_than_the_volume():
    sizes = set()

    def seen(patches):
        sizes.add(tuple(patches.shape[2:]))
        return patches

    blend_windows(seen, torch.zeros(1, 5, 20, 20), window=(8, 8, 8))
    assert sizes == {(5, 8, 8)}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("window", [None, (4, 4, 4)])
def test_one_logit_that_is_not_finite_is_refused(value, window):
    def segment(patches):
        logits = torch.zeros(len(patches), 2, *patches.shape[2:])
        logits[0, 1, 0, 0, 0] = value
        return logits

    with pytest.raises(ModelError, match="not finite"):
        predict_windows(segment, torch.zeros(1, 6, 6, 6), window=window)


@pytest.mark.parametrize(
    "wrong",
    [{"overlap": 1.0}, {"overlap": -0.1}, {"window": (4, 4)}, {"window": (0, 4, 4)}, {"mirror": (3,)}, {"mirror": (0, 0)}],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(RecipeError):
        predict_windows(one_by_one(), torch.zeros(2, 6, 6, 6), **wrong)


def test_memory_does_not_grow_with_the_number_of_windows():
    """A window's answer is added up and let go: never more of them alive than one batch and the one just made."""
    import weakref

    alive, most = set(), 0

    def segment(patches):
        nonlocal most
        answer = torch.zeros(len(patches), 2, *patches.shape[2:])
        alive.add(weakref.ref(answer, alive.discard))
        most = max(most, len(alive))
        return answer

    predict_windows(segment, torch.zeros(1, 12, 12, 12), window=(4, 4, 4))
    assert count_windows((12, 12, 12), (4, 4, 4)) == 125
    assert most <= 2
