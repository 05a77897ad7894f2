"""Barlow Twins against plain loops, its bounds, what it does not see, and what it refuses; and its projector."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from math import exp, log
from pathlib import Path
from statistics import mean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from modistill.errors import ModelError, RecipeError
from modistill.losses.barlow import barlow_twins, cells_with, cross_correlation, diagnose, samples
from modistill.networks.projector import VoxelProjector

SEEDS = st.integers(0, 10_000)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def white(n: int, d: int, seed: int = 0) -> Tensor:
    """Samples whose features have mean 0, variance 1 and no correlation."""
    columns = torch.cat([torch.ones(n, 1, dtype=torch.double), noise(n, d, seed=seed)], 1)
    return torch.linalg.qr(columns).Q[:, 1:] * n**0.5


def related(n: int = 64, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A student that tells in part what its teacher does."""
    z_t = noise(n, d, seed=seed)
    return z_t + noise(n, d, seed=seed + 1), z_t


def plain_correlation(z_s: Tensor, z_t: Tensor, eps: float = 1e-5) -> list[list[float]]:
    """Number by number."""

    def standardised(column: list[float]) -> list[float]:
        centre = mean(column)
        variance = mean((x - centre) ** 2 for x in column)
        return [(x - centre) / (variance + eps) ** 0.5 for x in column]

    s, t = ([standardised(column) for column in z.T.tolist()] for z in (z_s, z_t))
    return [[mean(a * b for a, b in zip(one, other, strict=True)) for other in t] for one in s]


# ---- samples


def test_samples_of_every_kind_by_hand() -> None:
    latent = torch.arange(12.0).reshape(2, 3, 2)  # case, channel, voxel
    voxels = [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert samples(latent).tolist() == voxels
    assert samples(latent, "pooled").tolist() == [[0.5, 2.5, 4.5], [6.5, 8.5, 10.5]]
    assert samples(latent, "batch").tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert samples(latent, "channels").tolist() == latent.tolist()
    mask = torch.tensor([[True, False], [True, True]])
    assert samples(latent, mask=mask).tolist() == [voxels[0], *voxels[2:]]
    assert samples(latent, "pooled", mask).tolist() == [[0, 2, 4], [6.5, 8.5, 10.5]]


def test_what_is_masked_changes_no_bit_and_a_case_without_cells_is_left_out() -> None:
    latent, mask = noise(3, 4, 2, 2, 2), noise(3, 2, 2, 2, seed=1) > 0
    mask[1] = False
    for of, count in (("voxels", int(mask.sum())), ("pooled", 2)):
        garbage = latent.masked_fill(~mask[:, None], torch.nan).requires_grad_()
        found = samples(garbage, of, mask)
        assert found.shape == (count, 4)
        assert torch.equal(found, samples(latent, of, mask))
        found.sum().backward()
        assert garbage.grad.isfinite().all()
        assert not garbage.grad[~mask[:, None].expand_as(garbage)].any()


def test_pooled_values_of_a_full_mask_are_the_means() -> None:
    latent = noise(2, 3, 4, 4)
    torch.testing.assert_close(samples(latent, "pooled", torch.ones(2, 4, 4)), samples(latent, "pooled"))
    assert torch.equal(samples(latent, mask=torch.ones(2, 4, 4)), samples(latent))


def test_samples_are_widened() -> None:
    latent = noise(2, 3, 4, 4).bfloat16()
    assert {samples(latent, of).dtype for of in ("voxels", "pooled", "batch", "channels")} == {torch.float32}


@pytest.mark.parametrize("dims", [2, 3])
def test_cells_hold_what_their_blocks_hold(dims: int) -> None:
    mask = torch.zeros(2, *(8,) * dims)
    mask[(0, *(3,) * dims)] = -0.5  # any value but zero, as normalised images have
    mask[(1, *(4,) * dims)] = 1
    found = cells_with(mask, (2,) * dims)
    assert found.dtype == torch.bool
    assert found.nonzero().tolist() == [[0] * (dims + 1), [1] * (dims + 1)]


def test_cells_of_a_mask_that_is_no_multiple_keep_everything() -> None:
    for place in range(7):
        mask = torch.zeros(1, 7, 7)
        mask[0, place, place] = 1
        assert cells_with(mask, (3, 2)).any()


def test_masks_that_do_not_go_together() -> None:
    latent = noise(2, 3, 4, 4)
    with pytest.raises(ModelError, match=r"a mask of \(2, 4, 5\) for a latent of \(2, 3, 4, 4\) \(cells_with makes"):
        samples(latent, mask=torch.ones(2, 4, 5))
    with pytest.raises(ModelError, match=r"a mask of \(2, 8, 8\) on a latent of \(2, 2, 2\) cells \(one axis for each"):
        cells_with(torch.ones(2, 8, 8), (2, 2, 2))
    for of in ("batch", "channels"):
        with pytest.raises(RecipeError, match=f"samples of '{of}' have voxels as features, and take no mask"):
            samples(latent, of, torch.ones(2, 4, 4))
    with pytest.raises(RecipeError, match=r"no samples of 'cells' \(voxels, pooled, batch or channels\)"):
        samples(latent, "cells")


# ---- the loss


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, n=st.integers(2, 9), d=st.integers(1, 4))
def test_the_loss_number_by_number(seed: int, n: int, d: int) -> None:
    z_s, z_t = related(n, d, seed)
    c = plain_correlation(z_s, z_t)
    torch.testing.assert_close(cross_correlation(z_s, z_t), torch.tensor(c, dtype=torch.double))
    on = sum((c[i][i] - 1) ** 2 for i in range(d))
    off = sum(c[i][j] ** 2 for i in range(d) for j in range(d) if i != j)
    assert barlow_twins(z_s, z_t, off_diagonal=0.3, smallest=2).item() == pytest.approx((on + 0.3 * off) / d)
    assert barlow_twins(z_s, z_t, off_diagonal=0.3, smallest=2, reduction="sum").item() == pytest.approx(on + 0.3 * off)
    assert barlow_twins(z_s, z_t, diagonal_only=True, smallest=2).item() == pytest.approx(on / d)


def test_the_correlation_is_that_of_batch_norms_without_scale_and_shift() -> None:
    z_s, z_t = related()
    s, t = (functional.batch_norm(z, None, None, training=True, eps=1e-5) for z in (z_s, z_t))
    torch.testing.assert_close(cross_correlation(z_s, z_t), s.T @ t / len(s))


def test_monais_loss_is_that_of_a_correlation_that_ends_below_one() -> None:
    from monai.losses import BarlowTwinsLoss

    for n, d in ((2, 6), (4, 6), (128, 6)):
        z_s, z_t = (1e4 * z for z in related(n, d))  # so that neither's eps counts
        c = cross_correlation(z_s, z_t) * (n - 1) / n
        diagonal = c.diagonal()
        expected = (1 - diagonal).square().sum() + 0.02 * (c.square().sum() - diagonal.square().sum())
        torch.testing.assert_close(BarlowTwinsLoss(0.02)(z_s, z_t), expected, rtol=1e-6, atol=1e-9)
    z = 1e4 * white(4, 2)
    assert BarlowTwinsLoss()(z, z).item() == pytest.approx(2 / 16)
    assert barlow_twins(z, z, smallest=4).item() == pytest.approx(0, abs=1e-15)


def test_white_features_against_themselves_give_zero() -> None:
    z = white(64, 16)
    identity = torch.eye(16, dtype=torch.double)
    torch.testing.assert_close(cross_correlation(z, z, eps=0), identity)
    assert barlow_twins(z, z, eps=0).item() == pytest.approx(0, abs=1e-25)
    assert barlow_twins(z, z).item() == pytest.approx((1e-5 / (1 + 1e-5)) ** 2)  # of each feature, C_ii = 1 / (1 + e)
    assert barlow_twins(z.float(), z.float()).item() < 1e-9


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_scales_and_offsets_of_features_do_not_count(seed: int) -> None:
    z_s, z_t = related(seed=seed)
    scales = [noise(5, seed=seed + k).exp() for k in (2, 3)]
    offsets = [noise(5, seed=seed + k) * 10 for k in (4, 5)]
    moved = [z * scale + offset for z, scale, offset in zip((z_s, z_t), scales, offsets, strict=True)]
    torch.testing.assert_close(barlow_twins(*moved, eps=0), barlow_twins(z_s, z_t, eps=0))


def test_a_feature_of_opposite_sign_is_the_worst() -> None:
    z = white(64, 4)
    signs = torch.tensor([-1.0, 1, 1, 1], dtype=torch.double)
    assert barlow_twins(z * signs, z, eps=0).item() == pytest.approx(4 / 4)
    other = white(64, 8)
    assert barlow_twins(other[:, :4], other[:, 4:], eps=0).item() == pytest.approx(1)  # knows nothing
    assert barlow_twins(-z, z, eps=0).item() == pytest.approx(4)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_symmetric_in_student_and_teacher(seed: int) -> None:
    z_s, z_t = related(seed=seed)
    torch.testing.assert_close(cross_correlation(z_s, z_t), cross_correlation(z_t, z_s).T)
    torch.testing.assert_close(barlow_twins(z_s, z_t), barlow_twins(z_t, z_s))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_samples_does_not_count_if_it_is_that_of_both(seed: int) -> None:
    z_s, z_t = related(seed=seed)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(barlow_twins(z_s[order], z_t[order]), barlow_twins(z_s, z_t))
    assert barlow_twins(z_s[order], z_t) > barlow_twins(z_s, z_t)
    assert barlow_twins(z_s, z_t) > barlow_twins(z_t, z_t)


def test_voxels_out_of_place_are_a_student_that_knows_nothing() -> None:
    latent = noise(2, 6, 4, 4, 4)
    flipped = samples(latent.flip(2))
    assert barlow_twins(samples(latent), samples(latent)).item() < 0.01
    assert barlow_twins(flipped, samples(latent)).item() > 0.7


def test_features_that_repeat_each_other_cost_lambda_unless_the_diagonal_is_alone() -> None:
    z = white(64, 1).expand(-1, 4)
    assert barlow_twins(z, z, eps=0, off_diagonal=0.02).item() == pytest.approx(0.02 * 12 / 4)
    assert barlow_twins(z, z, eps=0, diagonal_only=True).item() == pytest.approx(0)


def test_a_dead_channel_adds_one_and_has_a_finite_gradient() -> None:
    z_s, z_t = white(64, 4), white(64, 4)
    z_s[:, 1] = 3.0
    z_s.requires_grad_()
    c = cross_correlation(z_s, z_t)
    assert not c[1].any()
    loss = barlow_twins(z_s, z_t, eps=1e-9, reduction="sum")
    assert loss.item() == pytest.approx(1)
    loss.backward()
    assert z_s.grad.isfinite().all()


def test_no_gradient_reaches_a_detached_teacher() -> None:
    z_s, z_t = (z.requires_grad_() for z in related())
    barlow_twins(z_s, z_t.detach()).backward()
    assert z_t.grad is None
    assert z_s.grad.any()
    barlow_twins(z_s.detach(), z_t).backward()
    assert z_t.grad.any()


def test_numerical_gradients() -> None:
    """Through the means, too, though these count as constants."""
    z_s, z_t = (z.requires_grad_() for z in (noise(6, 3), noise(6, 3, seed=1)))
    for options in ({}, {"reduction": "sum", "off_diagonal": 0.7}, {"diagonal_only": True}):
        assert torch.autograd.gradcheck(lambda s, t, o=options: barlow_twins(s, t, smallest=6, **o), (z_s, z_t))
    cases = [z.reshape(2, 3, 3) for z in (z_s, z_t)]
    assert torch.autograd.gradcheck(lambda s, t: barlow_twins(s, t, smallest=3), cases)


def test_a_student_that_follows_the_gradient_comes_to_agree() -> None:
    torch.manual_seed(0)
    images = torch.randn(128, 8)
    z_t = images @ torch.randn(8, 6)
    student = nn.Linear(8, 6)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        barlow_twins(student(images), z_t).backward()
        optimizer.step()
    assert diagnose(student(images), z_t).diagonal.item() > 0.95


def test_channels_as_samples_have_a_correlation_in_every_case() -> None:
    z_s, z_t = (samples(noise(2, 40, 2, 3, seed=seed), "channels") for seed in (0, 1))
    assert z_s.shape == (2, 40, 6)
    parts = [barlow_twins(*pair) for pair in zip(z_s, z_t, strict=True)]
    torch.testing.assert_close(barlow_twins(z_s, z_t), torch.stack(parts).mean())
    each = [diagnose(*pair) for pair in zip(z_s, z_t, strict=True)]
    for found, *values in zip(diagnose(z_s, z_t), *each, strict=True):
        torch.testing.assert_close(found, torch.stack(values).mean())


def test_single_precision_under_autocast_and_for_rounded_latents() -> None:
    z_s, z_t = (z.float() for z in related(128, 32))
    z_s.requires_grad_()
    expected, watched = barlow_twins(z_s, z_t), diagnose(z_s, z_t)
    (exact,) = torch.autograd.grad(expected, z_s)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = barlow_twins(z_s, z_t)
        assert all(map(torch.equal, diagnose(z_s, z_t), watched))
    (gradient,) = torch.autograd.grad(found, z_s)
    assert torch.equal(found, expected)
    assert torch.equal(gradient, exact)
    assert barlow_twins(z_s.bfloat16(), z_t.bfloat16()).dtype == torch.float32


# ---- few samples


# N, D, and as measured once: the loss of independent features, of equal ones, and the part of it that no student can lower.
TABLE = [
    (2, 320, 1167, 518, 521),
    (4, 320, 585, 173, 172),
    (128, 320, 333, 4.1, 2.5),
    (1024, 320, 322, 0.5, 0),
    (128, 64, 63, 0.16, 0),
]


@pytest.mark.parametrize(("n", "d", "independent", "equal", "floor"), TABLE)
def test_what_so_many_samples_can_tell(n: int, d: int, independent: float, equal: float, floor: float) -> None:
    """C_ij of independent features has a mean square of 1 / (N - 1), on the diagonal and off it; that of equal ones, off it."""
    options = {"off_diagonal": 0.0051, "reduction": "sum", "smallest": 2}
    draws = range(8)
    pairs = [(noise(n, d, seed=2 * k), noise(n, d, seed=2 * k + 1)) for k in draws]
    found = mean(barlow_twins(s, t, **options).item() for s, t in pairs)
    off = 0.0051 * d * (d - 1) / (n - 1)
    deviation = 2 * (d / (n - 1)) ** 0.5  # of one draw, from the linear part of (1 - C_ii)^2
    assert found == pytest.approx(d + d / (n - 1) + off, abs=3 * deviation / len(draws) ** 0.5)
    assert independent == pytest.approx(d + d / (n - 1) + off, abs=3 * deviation)
    same = mean(barlow_twins(s, s, **options).item() for s, _ in pairs)
    assert same == pytest.approx(equal, rel=0.03, abs=0.01)
    assert same == pytest.approx(off, rel=0.03, abs=0.01)
    unavoidable = 0.0051 * max(d * d / (n - 1) - d, 0)
    assert unavoidable == pytest.approx(floor, abs=0.5)
    sharp = [barlow_twins(s, s, eps=0, **options).item() for s, _ in pairs]
    assert min(sharp) >= unavoidable * (1 - 1e-9)


def test_the_floor_is_reached() -> None:
    """D = 4 features that divide a rank of 2 evenly: 16 / 2 - 4."""
    plane = white(3, 2)
    z = plane @ torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, -1]], dtype=torch.double)
    assert barlow_twins(z, z, eps=0, off_diagonal=1, reduction="sum", smallest=3).item() == pytest.approx(4)


@pytest.mark.parametrize(("n", "d", "squares", "loss"), [(2, 320, "102080", "521"), (4, 320, "33813", "172")])
def test_too_few_samples_are_refused_with_the_floor(n: int, d: int, squares: str, loss: str) -> None:
    message = (
        rf"^Barlow Twins of {n} samples of {d} features, 32 samples are needed: where every feature agrees, squares off the "
        rf"diagonal still add up to {squares} or more \(the correlation has rank {n - 1}\), a loss of {loss} that no student "
        r"can lower \(take voxels as samples, or larger patches or batches\)$"
    )
    with pytest.raises(ModelError, match=message):
        barlow_twins(noise(n, d), noise(n, d), off_diagonal=0.0051, reduction="sum")


def test_too_few_samples_are_refused_whatever_they_are_of() -> None:
    latent = noise(2, 320, 4, 4, 4)
    for of, loss in (("pooled", "1.59"), ("batch", "102")):
        z = samples(latent, of)
        with pytest.raises(ModelError, match=rf"a loss of {loss} that no student"):
            barlow_twins(z, z)
    assert barlow_twins(samples(latent), samples(latent)).item() == pytest.approx(0.005 * 319 / 127, rel=0.03)
    pooled = samples(latent, "pooled")
    assert barlow_twins(pooled, pooled, smallest=2, eps=0).item() == pytest.approx(0.005 * 319)
    few = torch.zeros(2, 4, 4, 4)
    few[0, 0] = 1
    for options in ({}, {"diagonal_only": True}):
        with pytest.raises(ModelError, match=r"^Barlow Twins of 16 samples of 8 features, 32 samples are needed \(take voxels"):
            barlow_twins(*[samples(latent[:, :8], mask=few)] * 2, **options)
    for n in (0, 1):
        with pytest.raises(ModelError, match=f"of {n} samples of 8 features, 2 samples are needed"):
            barlow_twins(noise(n, 8), noise(n, 8), smallest=0)


def test_samples_and_options_that_do_not_go_together() -> None:
    message = r"samples of \(64, 5\) \(student\) and \(64, 4\) \(teacher\) \(\(samples, features\), the same of both"
    for function in (barlow_twins, cross_correlation, diagnose):
        with pytest.raises(ModelError, match=message):
            function(noise(64, 5), noise(64, 4))
    with pytest.raises(ModelError, match="the same of both"):
        barlow_twins(noise(2, 3, 4, 4), noise(2, 3, 4, 4))
    with pytest.raises(RecipeError, match=r"no reduction 'mean' \(dimension or sum\)"):
        barlow_twins(*related(), reduction="mean")
    with pytest.raises(RecipeError, match=r"off_diagonal is -1 \(0 or a positive number"):
        barlow_twins(*related(), off_diagonal=-1)


# ---- diagnostics


def test_diagnostics_number_by_number() -> None:
    z_s, z_t = related(12, 4)
    c = plain_correlation(z_s, z_t)
    found = diagnose(z_s, z_t)
    assert found.diagonal.item() == pytest.approx(mean(c[i][i] for i in range(4)))
    assert found.off_diagonal.item() == pytest.approx(mean(c[i][j] ** 2 for i in range(4) for j in range(4) if i != j) ** 0.5)
    centring = torch.eye(12, dtype=torch.double) - 1 / 12
    grams = [centring @ z @ z.T @ centring for z in (z_s, z_t)]  # Kornblith et al.'s form with kernels

    def independence(k: Tensor, m: Tensor) -> Tensor:
        return (k @ m).trace()

    expected = independence(*grams) / (independence(grams[0], grams[0]) * independence(grams[1], grams[1])).sqrt()
    torch.testing.assert_close(found.cka, expected)
    for rank, z in ((found.rank_student, z_s), (found.rank_teacher, z_t)):
        p = torch.linalg.svdvals(z - z.mean(0)).square()
        assert rank.item() == pytest.approx(exp(-sum(x * log(x) for x in (p / p.sum()).tolist())))


def test_effective_ranks_by_hand() -> None:
    z = white(64, 6)
    assert diagnose(z, z).rank_student.item() == pytest.approx(6)
    assert diagnose(z, z[:, :1].expand(-1, 6)).rank_teacher.item() == pytest.approx(1)
    halves = torch.tensor([2.0, 1, 1, 0, 0, 0], dtype=torch.double).sqrt()  # variances of 1/2, 1/4, 1/4: 1.5 bits
    assert diagnose(z * halves, z).rank_student.item() == pytest.approx(2**1.5)
    assert diagnose(noise(8, 50), noise(8, 50)).rank_student.item() < 7


def test_cka_sees_rotations_as_the_same_and_the_diagonal_does_not() -> None:
    z = noise(64, 8)
    turned = 3 * z @ torch.linalg.qr(noise(8, 8, seed=1)).Q + 5
    found = diagnose(turned, z)
    assert found.cka.item() == pytest.approx(1)
    assert found.diagonal.item() < 0.6
    assert diagnose(noise(4096, 8), noise(4096, 8, seed=1)).cka.item() < 0.01


def test_dead_channels_are_counted_and_nothing_is_nan() -> None:
    z_s, z_t = related(64, 5)
    z_s[:, 0] = 7.0
    z_t[:, 1:3] *= 1e-4
    found = diagnose(z_s, z_t)
    assert (found.dead_student.item(), found.dead_teacher.item()) == (1, 2)
    still = diagnose(torch.ones(64, 5), torch.ones(64, 5))
    assert [value.item() for value in still] == [0, 0, 1, 1, 0, 5, 5]
    assert diagnose(noise(64, 1), noise(64, 1)).off_diagonal.item() == 0


def test_diagnostics_of_a_broken_latent_leave_the_word_to_the_loss() -> None:
    z_s, z_t = related()
    z_s[3, 2] = torch.nan
    assert diagnose(z_s, z_t).diagonal.isnan()
    assert barlow_twins(z_s, z_t).isnan()


def test_diagnostics_have_no_gradient() -> None:
    z_s, z_t = (z.requires_grad_() for z in related())
    found = diagnose(z_s, z_t)
    assert {value.shape for value in found} == {torch.Size([])}
    assert not any(value.requires_grad for value in found)


# ---- several ranks


RANKS = """
    import sys
    import torch
    from torch import distributed, nn
    from modistill.distributed import average_gradients, leave
    from modistill.errors import ModelError
    from modistill.losses.barlow import barlow_twins, diagnose

    def noise(*shape, seed=0):
        return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            total = x.clone()
            distributed.all_reduce(total)
            return total

        @staticmethod
        def backward(ctx, gradient):
            return Sum.apply(gradient)

    rank, folder = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    share = slice(0, 25) if rank == 0 else slice(25, 64)
    torch.manual_seed(0)
    student, teacher = nn.Linear(7, 5).double(), nn.Linear(7, 5).double()
    images = noise(64, 7)[share] + 3
    z_s, z_t = student(images), teacher(images + noise(64, 7, seed=1)[share])
    loss = barlow_twins(z_s, z_t, off_diagonal=0.3, smallest=64, rank_sum=Sum.apply)
    parameters = [*student.parameters(), *teacher.parameters()]
    loss.backward(inputs=parameters)
    average_gradients(parameters)
    found = {"loss": loss.detach(), "gradients": [parameter.grad for parameter in parameters]}
    found["watched"] = diagnose(z_s, z_t, rank_sum=Sum.apply)
    cases = [noise(2, 40, 3, seed=seed)[rank : rank + 1] for seed in (2, 3)]
    found["cases"] = barlow_twins(*cases, rank_sum=Sum.apply)
    try:
        barlow_twins(z_s, z_t, smallest=65, rank_sum=Sum.apply)
    except ModelError as error:
        found["error"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    leave()
"""


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """With other numbers of samples on each; the gradients averaged afterwards, as the engine does."""
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for done in ranks:
        _, errors = done.communicate(timeout=120)
        assert done.returncode == 0, errors.decode()[-3000:]

    torch.manual_seed(0)
    student, teacher = nn.Linear(7, 5).double(), nn.Linear(7, 5).double()
    images = noise(64, 7) + 3
    z_s, z_t = student(images), teacher(images + noise(64, 7, seed=1))
    loss = barlow_twins(z_s, z_t, off_diagonal=0.3)
    expected = torch.autograd.grad(loss, [*student.parameters(), *teacher.parameters()])
    cases = [noise(2, 40, 3, seed=seed) for seed in (2, 3)]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    torch.testing.assert_close(torch.stack([one["cases"] for one in found]).mean(), barlow_twins(*cases))
    for one in found:
        torch.testing.assert_close(one["loss"], loss)
        for gradient, other in zip(one["gradients"], expected, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-10)
        for value, other in zip(one["watched"], diagnose(z_s, z_t), strict=True):
            torch.testing.assert_close(value, other)
        assert re.match(r"Barlow Twins of 64 samples of 5 features, 65 samples are needed \(", one["error"])


# ---- the projector


def test_the_projector_layer_by_layer() -> None:
    torch.manual_seed(0)
    projector = VoxelProjector(6, (5, 4, 3), dims=3).double()
    latent = noise(2, 6, 2, 3, 4)
    x = samples(latent)
    for k, layer in enumerate(projector.layers):
        assert layer.bias is None
        x = x @ layer.weight.flatten(1).T
        if k < 2:
            x = functional.batch_norm(x, None, None, training=True).relu()
    torch.testing.assert_close(samples(projector(latent)), x)
    assert x.min() < 0  # nothing after the last layer


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("dims", [2, 3])
def test_voxels_stay_voxels(dims: int, norm: str) -> None:
    projector = VoxelProjector(6, (8, 3), norm=norm, dims=dims).eval().double()
    latent = noise(2, 6, *(4,) * dims)
    assert projector(latent).shape == (2, 3, *(4,) * dims)
    torch.testing.assert_close(projector(latent.flip(2)), projector(latent).flip(2))


@pytest.mark.parametrize(("width", "millions"), [(320, 0.31), (1024, 2.43), (2048, 9.05), (8192, 136.9)])
def test_parameters_of_projectors(width: int, millions: float) -> None:
    with torch.device("meta"):
        projector = VoxelProjector(320, (width,) * 3)
    assert sum(p.numel() for p in projector.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def test_projectors_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="a projector without widths"):
        VoxelProjector(6, ())
    with pytest.raises(ValueError, match="norm is 'layer'"):
        VoxelProjector(6, (4, 4), norm="layer")
    with pytest.raises(ModelError, match=r"a latent of 5 channels and 2 axes, the projector reads 6 and 3 \(build it for"):
        VoxelProjector(6)(noise(1, 5, 4, 4))
