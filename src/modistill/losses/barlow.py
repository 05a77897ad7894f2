"""Barlow Twins between two latents: each feature of the student tells what it tells in the teacher, and no two tell the same.

Choi et al., "A single stage knowledge distillation network for brain tumor segmentation on limited MR image modalities"
(Computer Methods and Programs in Biomedicine 2023, https://doi.org/10.1016/j.cmpb.2023.107644), let a student of few modalities
learn from a teacher of all by the loss of Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction"
(ICML 2021, https://arxiv.org/abs/2103.03230). For samples n = 1 ... N of D features, s_n the student's and t_n the teacher's,

    C_ij = mean_n (s_ni - mean s_i) (t_nj - mean t_j) / sqrt((var s_i + e) (var t_j + e))
    L    = 1/D [ sum_i (C_ii - 1)^2 + lambda sum_{i != j} C_ij^2 ]

with e = 1e-5, lambda = 0.005, and biased variances: mean squares over the samples. C, the cross-correlation, lies in [-1, 1].
The first sum, invariance, is that of two features that agree up to scale and offset; an opposite sign is the worst that can be.
The second, redundancy reduction, spreads information over all features. Latents that are equal and white have L = 0,
independent ones about 1. A feature that is constant in either has C = 0 and adds 1/D.

What a sample is, the abstract of Choi et al. does not say; it decides whether the loss means anything. Of features that agree
perfectly, C has 1 on its diagonal and rank N - 1 at most, so that

    sum_{i != j} C_ij^2  >=  D^2 / (N - 1) - D

For a latent of 320x4x4x4 in a batch of 2 (nnU-Net's, patches of 128x128x128), lambda times that, not yet divided by D:

========  =======================  ==============  ==============  =====================================================
`of`      samples                  N               D               floor
========  =======================  ==============  ==============  =====================================================
voxels    every voxel              128             320             2.4; 0 for the stage above, and after a projection to
                                                                   127 features or fewer
pooled    means of cases           2               320             510; instance norms have made the means alike, too
batch     cases                    2               20480           2 million; C has 1.7 GB
channels  channels, in every case  320             64              0; but a channel need not be the same in both
========  =======================  ==============  ==============  =====================================================

With two samples each C_ij is 1 or -1, whatever the networks do: too few samples are an error here. Neighbouring voxels are
alike, so that in truth there are fewer. Where much of a patch is air, all features tell air from tissue and little else:
`cells_with` finds the voxels to keep.

Over several ranks, C is that of all their samples: it is made of sums, which `rank_sum` adds up. Every rank then has the same
loss, and the mean of their gradients is the gradient of one process. (Means are constants to the gradient, as its part through
them is zero: samples around their mean add up to zero.)

Of Choi et al. only the abstract is drawn on. It does not give samples, lambda, a weight, a projector, or whether the teacher
learns from the loss, too; all of them are arguments, or the caller's.

Differs from Barlow Twins
    1. It adds up the D parts. Here L is divided by D, so that one weight suits every D: `reduction="sum"` is the original.
    2. Its code has lambda = 0.0051, its paper 0.005: `off_diagonal`.
    3. There samples are images, and a projector of three layers of 8192 comes first: `networks.projector`, if any.

Differs from the loss of that name in MONAI
    It divides by deviations that are unbiased: the diagonal of its C ends at (N - 1) / N, so no student can satisfy it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from modistill.errors import ModelError, RecipeError
from modistill.hardware import wide

__all__ = ["Diagnostics", "RankSum", "SamplesOf", "barlow_twins", "cells_with", "cross_correlation", "diagnose", "samples"]

SamplesOf: TypeAlias = Literal["voxels", "pooled", "batch", "channels"]
RankSum: TypeAlias = Callable[[Tensor], Tensor]

_POOL = {2: functional.adaptive_max_pool2d, 3: functional.adaptive_max_pool3d}


def samples(latent: Tensor, of: SamplesOf = "voxels", mask: Tensor | None = None) -> Tensor:
    """The samples and features of a feature map.

    Args:
        latent: (B, C, *spatial).
        of: what a sample is; see the module.

            - "voxels": (B * voxels, C).
            - "pooled": (B, C), the mean over voxels.
            - "batch": (B, C * voxels).
            - "channels": (B, C, voxels), every case for itself.
        mask: (B, *spatial) bool, the voxels to keep; a case without any is left out. For voxels and pooled only: elsewhere
            voxels are features.

    Returns:
        In float32 at least.

    Raises:
        RecipeError: an unknown `of`, or one that takes no mask.
        ModelError: a mask on another grid.

    Example:
        >>> latent = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # one case, two channels, two voxels
        >>> samples(latent).tolist(), samples(latent, "pooled").tolist()
        ([[1.0, 3.0], [2.0, 4.0]], [[1.5, 3.5]])
        >>> samples(latent, mask=torch.tensor([[False, True]])).tolist()
        [[2.0, 4.0]]
    """
    if of not in ("voxels", "pooled", "batch", "channels"):
        raise RecipeError(f"no samples of {of!r}", remedy="voxels, pooled, batch or channels")
    latent = wide(latent)
    if mask is None:
        if of == "voxels":
            return latent.movedim(1, -1).flatten(0, -2)
        if of == "pooled":
            return latent.flatten(2).mean(2)
        return latent.flatten(1) if of == "batch" else latent.flatten(2)
    if of in ("batch", "channels"):
        raise RecipeError(f"samples of {of!r} have voxels as features, and take no mask", remedy="voxels or pooled")
    if mask.shape != (len(latent), *latent.shape[2:]):
        raise ModelError(
            f"a mask of {tuple(mask.shape)} for a latent of {tuple(latent.shape)}", remedy="cells_with makes one of its grid"
        )
    mask = mask.bool()
    if of == "voxels":
        return latent.movedim(1, -1)[mask]
    kept = mask.flatten(1).sum(1)
    sums = latent.masked_fill(~mask[:, None], 0).flatten(2).sum(2)
    return sums[kept > 0] / kept[kept > 0, None]


def cells_with(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Which cells of a latent hold anything of a mask: its maximum over the block of voxels behind each cell.

    Args:
        mask: (B, *spatial), not zero where there is brain; in 2D or 3D, on the grid of the images. For a network that fills up
            its images to a size that can be halved, filled up likewise.
        size: of the latent. Where it does not divide that of the mask, neighbouring blocks share voxels.

    Returns:
        (B, *size) bool.

    Raises:
        ModelError: the latent has other axes than the mask.

    Example:
        >>> cells_with(torch.tensor([[[0, 0, 0, 0], [0, 1, 0, 0]]]), (1, 2)).tolist()
        [[[True, False]]]
    """
    axes = mask.ndim - 1
    if axes not in _POOL or len(size) != axes:
        raise ModelError(
            f"a mask of {tuple(mask.shape)} on a latent of {tuple(size)} cells", remedy="one axis for each, 2 or 3"
        )
    pooled: Tensor = _POOL[axes]((mask != 0).float(), tuple(size))
    return pooled > 0


def cross_correlation(z_s: Tensor, z_t: Tensor, *, eps: float = 1e-5, rank_sum: RankSum | None = None) -> Tensor:
    """C of the module: how far each feature of the student goes with each of the teacher.

    Args:
        z_s: (N, D) samples of the student; or (B, N, D), cases with a correlation each.
        z_t: of the teacher, the same samples in the same order. The gradient goes to both.
        eps: added to the variances.
        rank_sum: the sum of a tensor over ranks, whose gradient is the sum (over ranks) of gradients; None for one process.
            All ranks must take part, with any number of samples. Cases with a correlation of their own stay on their rank.

    Returns:
        (D, D), or (B, D, D): row i is feature i of the student, column j is feature j of the teacher. In float32 at least,
        under autocast too.

    Raises:
        ModelError: samples that do not go together.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # the second feature is dead
        >>> [[round(c, 3) for c in row] for row in cross_correlation(z, -3 * z + 5).tolist()]
        [[-1.0, 0.0], [0.0, 0.0]]
    """
    return _correlation(_centred(z_s, z_t, rank_sum), eps)


def barlow_twins(
    z_s: Tensor,
    z_t: Tensor,
    *,
    off_diagonal: float = 0.005,
    reduction: Literal["dimension", "sum"] = "dimension",
    diagonal_only: bool = False,
    smallest: int = 32,
    eps: float = 1e-5,
    rank_sum: RankSum | None = None,
) -> Tensor:
    """The loss of the module, L.

    Args:
        z_s: (N, D) samples of the student; or (B, N, D), cases with a correlation each, whose losses are averaged.
        z_t: of the teacher, the same samples in the same order. The gradient goes to both: detach a teacher that shall not
            learn from its student.
        off_diagonal: lambda.
        reduction: "dimension" divides by D, "sum" does not.
        diagonal_only: leaves out the second sum: the features shall agree, and may repeat each other.
        smallest: number of samples, those of all ranks together, below which there is an error.
        eps: added to the variances.
        rank_sum: see `cross_correlation`.

    Returns:
        A scalar in float32 at least, of the samples of all ranks; of (B, N, D), of the cases of this rank.

    Raises:
        ModelError: too few samples, or samples that do not go together.
        RecipeError: an unknown reduction, or a negative lambda.

    Example:
        >>> white = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> for student in (white, -white, white.flip(1)):  # equal, opposite, each in the other's place: 0, 4, 1 + lambda
        ...     print(round(barlow_twins(student, white, smallest=4).item(), 3))
        0.0
        4.0
        1.005
    """
    if reduction not in ("dimension", "sum"):
        raise RecipeError(f"Barlow Twins have no reduction {reduction!r}", remedy="dimension or sum")
    if off_diagonal < 0:
        raise RecipeError(f"off_diagonal is {off_diagonal}", remedy="0 or a positive number, such as 0.005")
    both, d = _centred(z_s, z_t, rank_sum), z_s.shape[-1]
    weight, unit = 0.0 if diagonal_only else off_diagonal, d if reduction == "dimension" else 1
    if both.n < max(smallest, 2):
        raise _too_few(both.n, d, smallest, weight / unit)
    diagonal, others = _parts(_correlation(both, eps))
    invariance, redundancy = (1 - diagonal).square().sum(-1), others.square().sum((-2, -1))
    return (invariance + weight * redundancy).mean() / unit


class Diagnostics(NamedTuple):
    """What happens to two latents during a distillation. Scalars, without gradient; means over cases for (B, N, D).

    The effective rank (Roy and Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO 2007,
    https://infoscience.epfl.ch/record/110188) of a matrix is exp(-sum_k p_k log p_k), with p its singular values, divided by
    their sum. The matrix here is the covariance of the features, so that p is the share of variance along each principal axis:
    of D features that are white it is D, of features that all say one thing 1. It is at most N - 1, and at most D.

    CKA, the linear centred kernel alignment (Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML
    2019, https://arxiv.org/abs/1905.00414), of samples S and T around their means is |S' T|^2 / (|S' S| |T' T|), Frobenius
    norms. In [0, 1], and 1 for latents that differ by a rotation and a scale: it rises where the student knows what the teacher
    knows, in whichever features; `diagonal` rises where it is the same features.

    Attributes:
        diagonal: mean_i C_ii, in [-1, 1].
        off_diagonal: the root of mean_{i != j} C_ij^2, in [0, 1]. Of independent latents it is 1 / sqrt(N - 1), not 0.
        rank_student: effective rank of the student's latent.
        rank_teacher: of the teacher's.
        cka: linear CKA.
        dead_student: number of features with a variance below `eps`: constant, or so nearly that C_ii cannot reach 1/2.
        dead_teacher: of the teacher.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    rank_student: Tensor
    rank_teacher: Tensor
    cka: Tensor
    dead_student: Tensor
    dead_teacher: Tensor


@torch.no_grad()
def diagnose(z_s: Tensor, z_t: Tensor, *, eps: float = 1e-5, rank_sum: RankSum | None = None) -> Diagnostics:
    """What to watch beside `barlow_twins`. Arguments and errors are those of `cross_correlation`.

    Example:
        >>> white = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> found = diagnose(white[:, [0, 0]], white)  # the student has the teacher's first feature twice
        >>> [round(value.item(), 3) for value in found]
        [0.5, 0.707, 1.0, 2.0, 0.707, 0.0, 0.0]
    """
    s, t, n, total = _centred(z_s, z_t, rank_sum)
    with torch.autocast(s.device.type, enabled=False):
        of_s, of_t, cross = total(torch.stack([s.mT @ s, t.mT @ t, s.mT @ t])).div(max(n, 1)).unbind()
    var_s, var_t = (covariance.diagonal(dim1=-2, dim2=-1) for covariance in (of_s, of_t))
    diagonal, others = _parts(_standardised(cross, var_s, var_t, eps))
    d, tiny = diagonal.shape[-1], torch.finfo(cross.dtype).tiny
    norms = [torch.linalg.matrix_norm(covariance) for covariance in (of_s, of_t, cross)]
    return Diagnostics(
        diagonal=diagonal.mean(),
        off_diagonal=(others.square().sum((-2, -1)) / max(d * (d - 1), 1)).sqrt().mean(),
        rank_student=_effective_rank(of_s).mean(),
        rank_teacher=_effective_rank(of_t).mean(),
        cka=(norms[2] / norms[0].clamp(min=tiny) * (norms[2] / norms[1].clamp(min=tiny))).mean(),
        dead_student=(var_s < eps).sum(-1).float().mean(),
        dead_teacher=(var_t < eps).sum(-1).float().mean(),
    )


def _effective_rank(covariance: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised eigenvalues of (..., D, D); 1 for a covariance of zero."""
    # On the CPU and in double precision, whatever the device: not every GPU has a solver, and the matrix is small.
    # Without what is not finite, at which a solver gives up: the loss will say so more clearly.
    matrix = torch.nan_to_num(covariance.cpu().double(), nan=0, posinf=0, neginf=0)
    values = torch.linalg.eigvalsh(matrix).clamp(min=0)
    p = values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    rank: Tensor = torch.special.entr(p).sum(-1).exp().to(covariance)
    return rank


class _Centred(NamedTuple):
    """Samples (..., N, D) of student and teacher around the means of all ranks, in float32 at least."""

    s: Tensor
    t: Tensor
    n: int  # number of samples, of all ranks together
    total: RankSum


def _centred(z_s: Tensor, z_t: Tensor, rank_sum: RankSum | None) -> _Centred:
    if z_s.shape != z_t.shape or z_s.ndim not in (2, 3):
        raise ModelError(
            f"samples of {tuple(z_s.shape)} (student) and {tuple(z_t.shape)} (teacher)",
            remedy="(samples, features), the same of both: give both networks one width and one crop, or project them",
        )
    s, t = wide(z_s), wide(z_t)
    if rank_sum is None or s.ndim == 3:
        rank_sum, n = _alone, s.shape[-2]
    else:
        n = int(rank_sum(torch.tensor(s.shape[-2], device=s.device)))
    with torch.no_grad():  # no gradient passes through the means, see the module
        mean_s, mean_t = (rank_sum(torch.stack([s.sum(-2), t.sum(-2)])) / max(n, 1)).unsqueeze(-2)
    return _Centred(s - mean_s, t - mean_t, n, rank_sum)


def _alone(value: Tensor) -> Tensor:
    return value


def _correlation(both: _Centred, eps: float) -> Tensor:
    """C, from one message between ranks."""
    s, t, n, total = both
    with torch.autocast(s.device.type, enabled=False):
        squares = [x.square().sum(-2, keepdim=True) for x in (s, t)]
        moments = total(torch.cat([s.mT @ t, *squares], -2)) / max(n, 1)
    return _standardised(moments[..., :-2, :], moments[..., -2, :], moments[..., -1, :], eps)


def _standardised(cross: Tensor, var_s: Tensor, var_t: Tensor, eps: float) -> Tensor:
    """C from covariances (..., D, D) and variances (..., D)."""
    return cross * (var_s + eps).rsqrt().unsqueeze(-1) * (var_t + eps).rsqrt().unsqueeze(-2)


def _parts(c: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal (..., D) of (..., D, D), and the matrix with zeros there."""
    return c.diagonal(dim1=-2, dim2=-1), c.masked_fill(torch.eye(c.shape[-1], dtype=torch.bool, device=c.device), 0)


def _too_few(n: int, d: int, smallest: int, weight: float) -> ModelError:
    """Why a loss of so few samples cannot be."""
    reason = f"Barlow Twins of {n} samples of {d} features, {max(smallest, 2)} samples are needed"
    if n > 1 and (floor := d * d / (n - 1) - d) > 0 and weight:
        reason += (
            f": where every feature agrees, squares off the diagonal still add up to {floor:.0f} or more (the correlation has "
            f"rank {n - 1}), a loss of {weight * floor:.3g} that no student can lower"
        )
    return ModelError(reason, remedy="take voxels as samples, or larger patches or batches")
