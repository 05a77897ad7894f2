"""The contextual loss against plain loops, its bounds, and what it does not see."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from modistill.errors import ModelError, RecipeError
from modistill.losses import contextual
from modistill.losses.contextual import contextual_loss

SEEDS = st.integers(0, 10_000)


def features(*shape, seed=0, dtype=torch.double):
    """As random layers give them: normal, then ReLU."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).relu()


def shuffled(maps, seed=0):
    """The same features at other positions."""
    order = torch.randperm(maps[0, 0].numel(), generator=torch.Generator().manual_seed(seed))
    return maps.flatten(2)[:, :, order].reshape(maps.shape)


def plain(generated, target, h=0.5, direction="mechrez", distance="cosine"):
    """Number by number."""
    total = 0.0
    g, m = generated.flatten(2), target.flatten(2)
    channels = range(m.shape[1])
    mean = [sum(x for image in m.tolist() for x in image[c]) / (len(m) * m.shape[2]) for c in channels]

    def vectors(image):
        return [[x - mean[c] for c, x in enumerate(vector)] for vector in image.T.tolist()]

    def apart(a, b):
        if distance == "l2":
            return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
        lengths = [sum(x * x for x in v) ** 0.5 for v in (a, b)]
        return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])

    for one, other in zip(g, m, strict=True):
        rows = []
        for a in vectors(one):
            d = [apart(a, b) for b in vectors(other)]
            w = [exp((1 - x / (min(d) + 1e-5)) / h) for x in d]
            rows.append([x / sum(w) for x in w])
        columns = list(zip(*rows, strict=True))
        maxima = [max(values) for values in (columns if direction == "mechrez" else rows)]
        total -= log(sum(maxima) / len(maxima) + 1e-5)
    return total / len(g)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("direction", ["mechrez", "cmedl"])
@pytest.mark.parametrize("h", [0.1, 0.5, 1.0])
def test_equals_plain_loops(h, direction, distance):
    g, m = features(2, 5, 4, 3), features(2, 5, 3, 6, seed=1)
    found = contextual_loss(g, m, bandwidth=h, direction=direction, distance=distance)
    assert found.item() == pytest.approx(plain(g, m, h, direction, distance))


@pytest.mark.parametrize("h", [0.1, 0.5, 1.0])
def test_of_single_precision_and_more_positions_against_plain_loops(h):
    g, m = features(1, 16, 8, 8, dtype=torch.float32), features(1, 16, 8, 8, seed=1, dtype=torch.float32)
    assert contextual_loss(g, m, bandwidth=h).item() == pytest.approx(plain(g.double(), m.double(), h), rel=1e-4)


@pytest.mark.parametrize(("h", "expected"), [(0.1, 5.33), (0.5, 7.65), (1.0, 7.96)])
def test_of_independent_random_features(h, expected):
    """4096 positions of 256 channels, where the loss is nearly as large as it can be."""
    g, m = (features(1, 256, 64, 64, seed=seed, dtype=torch.float32) for seed in (0, 1))
    with torch.no_grad():
        found = contextual_loss(g, m, bandwidth=h).item()
    assert found == pytest.approx(expected, abs=0.01)
    assert found < log(4096)


def test_by_hand():
    """Two kinds of patches, of which the generated image has one: for h -> 0, half of the target is found."""
    kinds = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
    one_kind = kinds[:, :, :1].expand(-1, -1, 2, -1)
    assert contextual_loss(one_kind, kinds).item() == pytest.approx(log(2), abs=1e-4)
    assert contextual_loss(one_kind, kinds, direction="cmedl").item() == pytest.approx(0, abs=2e-5)
    assert contextual_loss(kinds, kinds).item() == pytest.approx(-1e-5, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, h=st.sampled_from([0.1, 0.5, 1.0]), direction=st.sampled_from(["mechrez", "cmedl"]))
def test_zero_for_the_same_image_and_wherever_its_patches_lie(seed, h, direction):
    m = features(2, 6, 5, 4, seed=seed)
    directions = functional.normalize(m - m.mean((0, 2, 3), keepdim=True), dim=1).flatten(2)
    alike = torch.einsum("bci,bcj->bij", directions, directions) - 2 * torch.eye(20)
    assume(alike.max() < 0.99)  # of two patches that are nearly one, neither is found for sure
    for g in (m, shuffled(m, seed)):
        assert contextual_loss(g, m, bandwidth=h, direction=direction).item() == pytest.approx(0, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, h=st.sampled_from([0.1, 0.5, 1.0]), distance=st.sampled_from(["cosine", "l2"]))
def test_positions_do_not_matter_and_bounds(seed, h, distance):
    g, m = features(2, 6, 5, 4, seed=seed), features(2, 6, 5, 4, seed=seed + 1)
    for direction in ("mechrez", "cmedl"):
        options = {"bandwidth": h, "direction": direction, "distance": distance}
        found = contextual_loss(g, m, **options)
        torch.testing.assert_close(contextual_loss(shuffled(g), shuffled(m, 1), **options), found)
        assert 0 < found <= log(20)


def test_the_mean_is_the_targets_over_the_batch():
    """So a batch is its parts where the targets have one mean."""
    g, m = features(3, 6, 5, 4), features(1, 6, 5, 4, seed=1)
    m = torch.cat([shuffled(m, seed) for seed in range(3)])
    parts = [contextual_loss(*(x[n : n + 1] for x in (g, m))) for n in range(3)]
    torch.testing.assert_close(contextual_loss(g, m), torch.stack(parts).mean())
    offset = torch.randn(1, 6, 1, 1, dtype=torch.double)
    torch.testing.assert_close(contextual_loss(g + offset, m + offset), contextual_loss(g, m))


def test_the_scale_of_features_does_not_matter():
    g, m = features(1, 6, 5, 4), features(1, 6, 5, 4, seed=1)
    for distance in ("cosine", "l2"):
        found = contextual_loss(g, m, distance=distance)
        torch.testing.assert_close(contextual_loss(50 * g, 50 * m, distance=distance), found, rtol=1e-3, atol=0)


@pytest.mark.parametrize("direction", ["mechrez", "cmedl"])
@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_rows_at_a_time_change_nothing(monkeypatch, direction, distance):
    results = []
    for entries in (2**20, 60, 1):
        monkeypatch.setattr(contextual, "_ENTRIES", entries)
        g, m = features(2, 6, 5, 4).requires_grad_(), features(2, 6, 5, 4, seed=1).requires_grad_()
        loss = contextual_loss(g, m, direction=direction, distance=distance)
        loss.backward(inputs=[g, m])  # as the training engine does
        results.append([loss, g.grad, m.grad])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("direction", ["mechrez", "cmedl"])
@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_numerical_gradients(direction, distance):
    g, m = features(2, 3, 2, 3).requires_grad_(), features(2, 3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda g, m: contextual_loss(g, m, direction=direction, distance=distance), (g, m))


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_gradients_are_finite_where_the_loss_is_flat(distance):
    """For the same image, and for images of one grey, whose features are all alike."""
    for m in (features(1, 6, 5, 4, dtype=torch.float32), torch.ones(1, 6, 5, 4)):
        g = m.clone().requires_grad_()
        loss = contextual_loss(g, m, distance=distance)
        loss.backward()
        assert loss.isfinite()
        assert g.grad.isfinite().all()


def test_gradients_lead_to_the_target():
    """Features that follow the gradient come to have the target's patches."""
    g, m = features(1, 8, 4, 4).requires_grad_(), features(1, 8, 4, 4, seed=1)
    begin, optimizer = contextual_loss(g, m).item(), torch.optim.Adam([g], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        contextual_loss(g, m).backward()
        optimizer.step()
    assert contextual_loss(g, m).item() < begin / 4


def test_layers_are_added_or_averaged():
    g, m = ((features(1, c, c, 4, seed=seed + c) for c in (3, 5)) for seed in (0, 9))
    g, m = tuple(g), tuple(m)
    parts = [contextual_loss(*pair) for pair in zip(g, m, strict=True)]
    torch.testing.assert_close(contextual_loss(g, m), parts[0] + parts[1])
    torch.testing.assert_close(contextual_loss(g, m, layers="mean"), (parts[0] + parts[1]) / 2)


def test_three_dimensions():
    g, m = features(1, 6, 2, 5, 2), features(1, 6, 2, 5, 2, seed=1)
    torch.testing.assert_close(contextual_loss(g, m), contextual_loss(g.flatten(3), m.flatten(3)))


def test_fewer_positions():
    g, m = features(2, 6, 8, 8), features(2, 6, 8, 8, seed=1)

    def seeded(g, m, seed, most=20):
        return contextual_loss(g, m, max_positions=most, generator=torch.Generator().manual_seed(seed))

    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))[:20]
    torch.testing.assert_close(seeded(g, m, 3), contextual_loss(g.flatten(2)[:, :, order], m.flatten(2)[:, :, order]))
    assert seeded(g, m, 3) == seeded(g, m, 3) != seeded(g, m, 4)
    assert seeded(m, m, 5).item() == pytest.approx(0, abs=1e-3)  # the same positions in both
    torch.testing.assert_close(seeded(g, m, 3, most=64), contextual_loss(g, m))
    few = features(2, 6, 3, 3)
    assert 0 < seeded(few, m, 3) <= log(20)  # of the larger map only
    torch.manual_seed(3)
    assert contextual_loss(g, m, max_positions=20) == seeded(g, m, 3)


def test_single_precision_under_autocast_and_for_rounded_features():
    g, m = features(1, 16, 8, 8, dtype=torch.float32).requires_grad_(), features(1, 16, 8, 8, seed=1, dtype=torch.float32)
    expected = contextual_loss(g, m)
    (exact,) = torch.autograd.grad(expected, g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = contextual_loss(g, m)
    (gradient,) = torch.autograd.grad(found, g)  # the rows are made again outside of autocast
    assert torch.equal(found, expected)
    assert torch.equal(gradient, exact)
    assert contextual_loss(g.bfloat16(), m.bfloat16()).dtype == torch.float32


def test_maps_that_do_not_go_together():
    g = features(2, 3, 4)
    with pytest.raises(ModelError, match=r"\(2, 3, 4\) \(generated\) and \(1, 3, 4\) \(target\): batch and channels differ"):
        contextual_loss(g, g[:1])
    with pytest.raises(ModelError, match=r"maps of 2 layers \(generated\) and 1 \(target\) \(use one extractor"):
        contextual_loss((g, g), (g,))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"bandwidth": 0.0}, "the bandwidth of the contextual loss is 0.0"),
        ({"max_positions": 0}, "max_positions is 0"),
        ({"direction": "both"}, r"no direction 'both' \(mechrez or cmedl\)"),
        ({"distance": "l1"}, r"no distance 'l1' \(cosine or l2\)"),
        ({"layers": "max"}, r"no layers 'max' \(sum or mean\)"),
    ],
)
def test_options_that_are_not_there(option, message):
    with pytest.raises(RecipeError, match=message):
        contextual_loss(features(1, 3, 4), features(1, 3, 4), **option)
