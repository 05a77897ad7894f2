"""The contextual loss: two images have the same kinds of patches, wherever these lie.

Mechrez, Talmi, Zelnik-Manor, "The Contextual Loss for Image Transformation with Non-Aligned Data" (ECCV 2018,
https://arxiv.org/abs/1803.02077), with which CMEDL compares a pseudo MR with an MR of another patient (Jiang et al., IEEE TMI
2022, https://arxiv.org/abs/2107.07985). For the feature vectors g_i of a generated image and m_j of a target image, one at
every position of two maps of one layer, with mu the mean of all m_j of the batch and e = 1e-5:

    d_ij  = 1 - cos(g_i - mu, m_j - mu)
    d'_ij = d_ij / (min_k d_ik + e)
    w_ij  = exp((1 - d'_ij) / h)
    A_ij  = w_ij / sum_k w_ik                     for every g_i, a distribution over the m_j
    CX    = mean_j max_i A_ij                     in (0, 1]
    L     = -log(CX + e),                         a mean over the batch, a sum over layers

With h, the bandwidth, going to zero, CX is the share of target positions that are the nearest of some generated one. L is zero
(-1e-5, to be exact) for an image and any rearrangement of it, and never above the logarithm of the number of target positions:
independent random features of 256 channels at 64x64 positions have 5.3, 7.7 and 8.0 at h = 0.1, 0.5 and 1, of at most 8.3.

The matrices have positions squared entries, 64 MiB each for 64x64. They are made some rows at a time, and once more for the
gradient, so that no more than these rows is ever there. Measured on a CPU for one such image, the gradient included: 130 to 180
MiB beside the features instead of 400, and no slower.

Differs from CMEDL
    1. Its equation takes the maximum over the target and the mean over the generated positions of the same A:
       `direction="cmedl"`. That asks of every generated patch to be like some target patch, not that all kinds of target
       patches occur: a single one, repeated, has loss zero. The default is Mechrez et al.'s.
    2. Bandwidth, layer weights and the form of d are not stated there. Here they are 0.5, 1 and the cosine.

Differs from the published code of Mechrez et al.
    1. It halves the cosine distance, which cancels in d' but for e.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from modistill.errors import ModelError, RecipeError
from modistill.hardware import wide

__all__ = ["contextual_loss"]

_EPS = 1e-5
_ENTRIES = 2**20  # of a matrix that are worked on at once: 4 MiB

Direction = Literal["mechrez", "cmedl"]
Distance = Literal["cosine", "l2"]


def contextual_loss(
    generated: Tensor | Sequence[Tensor],
    target: Tensor | Sequence[Tensor],
    *,
    bandwidth: float = 0.5,
    direction: Direction = "mechrez",
    distance: Distance = "cosine",
    max_positions: int | None = None,
    generator: torch.Generator | None = None,
    layers: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """How far a generated image is from having the patches of a target image, as features of one layer or several tell it.

    Args:
        generated: (B, C, *spatial) of one layer, or such a map for each layer; the channels are those of the layer.
        target: maps of the other image, with the same B and C; its positions may be other ones, and more or fewer.
        bandwidth: h; small, each generated patch goes to its nearest target patch only.
        direction: "mechrez" or "cmedl", see the module.
        distance: "cosine", see the module, or "l2", the squared Euclidean distance of g_i and m_j. As d' is relative, it needs
            no other bandwidth for features of another scale.
        max_positions: of maps with more positions so many are drawn at random: the same in all images of the batch, and in
            both maps where they are of one size. None takes all.
        generator: of the random draw, on the CPU; None for torch's global one.
        layers: whether the losses of several layers are added or averaged.

    Returns:
        A scalar, computed in float32 at least, under autocast too.

    Raises:
        ModelError: maps that do not go together.
        RecipeError: a bandwidth or number of positions that is not positive, or an unknown direction, distance or reduction.

    Example:
        >>> maps = torch.eye(4).reshape(1, 4, 2, 2)  # four kinds of patches
        >>> abs(round(contextual_loss(maps, maps.flip(2)).item(), 3))
        0.0
        >>> round(contextual_loss(maps[..., :1].expand(-1, -1, -1, 2), maps).item(), 3)  # half of them
        0.693
    """
    _check_options(bandwidth, direction, distance, max_positions, layers)
    pairs = _pairs(generated, target)
    losses = []
    for g, m in pairs:
        g, m = _drawn(wide(g).flatten(2), wide(m).flatten(2), max_positions, generator)
        if distance == "cosine":
            mean = m.mean((0, 2), keepdim=True)
            g, m = (functional.normalize(x - mean, dim=1, eps=_EPS) for x in (g, m))
        images = zip(g, m, strict=True)
        similarity = torch.stack([_similarity(*image, bandwidth, direction, distance) for image in images])
        losses.append(-(similarity + _EPS).log().mean())
    total = torch.stack(losses)
    return total.sum() if layers == "sum" else total.mean()


def _similarity(g: Tensor, m: Tensor, bandwidth: float, direction: Direction, distance: Distance) -> Tensor:
    """CX of the features (C, N) of one generated image and (C, M) of one target image."""
    maxima = []
    for rows in g.split(max(1, _ENTRIES // m.shape[1]), dim=1):  # type: ignore[no-untyped-call]
        found = checkpoint(_row_maxima, rows, m, bandwidth, direction, distance, use_reentrant=False, preserve_rng_state=False)
        maxima.append(found)
    return torch.stack(maxima).amax(0).mean() if direction == "mechrez" else torch.cat(maxima).mean()


def _row_maxima(g: Tensor, m: Tensor, bandwidth: float, direction: Direction, distance: Distance) -> Tensor:
    """Largest A_ij of every target position (M,), or of every generated one (N,), from some generated ones (C, N)."""
    with torch.autocast(g.device.type, enabled=False):
        d = 1 - g.T @ m if distance == "cosine" else _squared_distances(g, m)
    relative = d / (d.amin(1, keepdim=True) + _EPS)
    return (-relative / bandwidth).softmax(1).amax(0 if direction == "mechrez" else 1)  # exp(1/h) cancels in A


def _squared_distances(g: Tensor, m: Tensor) -> Tensor:
    """|g_i - m_j|^2, (N, M)."""
    return ((g * g).sum(0)[:, None] + (m * m).sum(0) - 2 * g.T @ m).clamp(min=0)


def _drawn(g: Tensor, m: Tensor, most: int | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """At most so many positions of (B, C, N) and (B, C, M)."""
    if most is None or max(g.shape[2], m.shape[2]) <= most:
        return g, m

    def draw(n: int) -> Tensor:
        return torch.randperm(n, generator=generator, device="cpu")[:most]

    in_g = draw(g.shape[2])
    in_m = in_g if m.shape[2] == g.shape[2] else draw(m.shape[2])
    return g[:, :, in_g.to(g.device)], m[:, :, in_m.to(m.device)]


def _pairs(generated: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The maps of every layer, generated and target."""
    g, m = ([maps] if isinstance(maps, Tensor) else list(maps) for maps in (generated, target))
    if len(g) != len(m) or not g:
        raise ModelError(f"maps of {len(g)} layers (generated) and {len(m)} (target)", remedy="use one extractor for both")
    for one, other in zip(g, m, strict=True):
        if one.shape[:2] != other.shape[:2]:
            raise ModelError(
                f"feature maps of {tuple(one.shape)} (generated) and {tuple(other.shape)} (target): batch and channels differ",
                remedy="use one extractor for both, and batches of one size",
            )
    return list(zip(g, m, strict=True))


def _check_options(bandwidth: float, direction: str, distance: str, max_positions: int | None, layers: str) -> None:
    if not bandwidth > 0:
        raise RecipeError(f"the bandwidth of the contextual loss is {bandwidth}", remedy="a positive number, such as 0.5")
    if max_positions is not None and max_positions < 1:
        raise RecipeError(f"max_positions is {max_positions}", remedy="a positive number, or none for all positions")
    for name, value, known in (
        ("direction", direction, ("mechrez", "cmedl")),
        ("distance", distance, ("cosine", "l2")),
        ("layers", layers, ("sum", "mean")),
    ):
        if value not in known:
            raise RecipeError(f"the contextual loss has no {name} {value!r}", remedy=" or ".join(known))
