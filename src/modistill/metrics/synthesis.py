"""Synthetic images against real ones of the same patient on the same grid.

With s the synthetic image, r the real one, R the range of the scale both are on (1 for normalised images), and sums and means
over the voxels of a region:
    MAE = mean |s - r|          NMAE = sum |s - r| / sum |r|          PSNR = 10 log10(R^2 / mean (s - r)^2), in dB
    SSIM = mean of (2 m_s m_r + c1) (2 v_sr + c2) / ((m_s^2 + m_r^2 + c1) (v_s + v_r + c2))
with means m, variances v and covariance v_sr in a Gaussian window of 11 voxels an edge, sigma 1.5, c1 = (0.01 R)^2 and
c2 = (0.03 R)^2: Wang, Bovik, Sheikh, Simoncelli, IEEE Transactions on Image Processing 13:600, 2004
(https://doi.org/10.1109/TIP.2003.819861). As there, windows lie wholly inside the image.

These three ask for the same value at the same place. Whether the values are those of the modality at all, wherever they lie, is
asked by the divergence of the two histograms, with p and q the shares of the bins
    KL(p || q) = sum_b p_b ln(p_b / q_b)

MAE has the units of the scale, so its share of the range is MAE / R. NMAE has the real image for its unit: where that is dark,
the same error counts more. It needs a scale that begins at 0, with nothing there.

Numbers are comparable on one scale and in one region only: a scale with room to spare, and air around the patient, make every
error small. What such metrics miss: Dohmen et al., 2024 (https://arxiv.org/abs/2408.06075).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.errors import GeometryError

__all__ = [
    "SSIM_SIGMA",
    "SSIM_WINDOW",
    "kl_divergence",
    "mae",
    "nmae",
    "psnr",
    "ssim",
    "ssim_map",
    "worst_kl",
    "worst_nmae",
]

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # voxels
_AT_ONCE = 16  # slices of which windows are compared together, to bound memory


def mae(synthetic: NDArray[Any], real: NDArray[Any]) -> float:
    """Mean absolute error, in the units of the images; NaN of no voxels.

    Args:
        synthetic: any shape.
        real: the same shape.

    Raises:
        GeometryError: the shapes differ.

    Example:
        >>> mae(np.array([0.0, 1.0]), np.array([0.5, 1.0]))
        0.25
    """
    error = _error(synthetic, real)
    return float(np.abs(error).mean()) if error.size else math.nan


def nmae(synthetic: NDArray[Any], real: NDArray[Any]) -> float:
    """Absolute error as a share of the real image, sum |s - r| / sum |r|; NaN where that is 0 everywhere, or has no voxel.

    An image of zeros has 1; one that is too bright may have more.

    Args:
        synthetic: any shape.
        real: the same shape, on a scale that begins at 0.

    Raises:
        GeometryError: the shapes differ.

    Example:
        >>> nmae(np.array([0.0, 1.0]), np.array([0.5, 1.5]))
        0.5
    """
    error, total = _error(synthetic, real), float(np.abs(real).sum(dtype=np.float64))
    return float(np.abs(error).sum()) / total if total else math.nan


def worst_nmae(real: NDArray[Any]) -> float:
    """The largest `nmae` that an image from 0 to 1 can have: 1 where the real one lies below 1/2, 0 elsewhere.

    Example:
        >>> worst_nmae(np.array([0.25, 0.75]))
        1.5
    """
    return nmae(np.where(real < 0.5, 1.0, 0.0), real)


def psnr(synthetic: NDArray[Any], real: NDArray[Any], *, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio, in dB; infinite where all values are equal, NaN of no voxels.

    Args:
        synthetic: any shape.
        real: the same shape.
        data_range: of the scale, not of these values.

    Raises:
        GeometryError: the shapes differ.

    Example:
        >>> psnr(np.array([0.1, 0.1]), np.array([0.0, 0.2]))
        20.0
    """
    error = _error(synthetic, real)
    if not error.size:
        return math.nan
    squared = float(np.square(error).mean())
    return 10 * math.log10(data_range**2 / squared) if squared else math.inf


def ssim(
    synthetic: NDArray[Any],
    real: NDArray[Any],
    mask: NDArray[np.bool_] | None = None,
    *,
    data_range: float = 1.0,
    dims: int = 2,
) -> float:
    """Structural similarity, -1 to 1: the mean of `ssim_map` over the voxels of a mask; NaN if no window lies in it.

    Args:
        synthetic: (D, H, W).
        real: (D, H, W).
        mask: (D, H, W); None for everything.
        data_range: of the scale.
        dims: see `ssim_map`.

    Raises:
        GeometryError: see `ssim_map`.
    """
    found = ssim_map(synthetic, real, data_range=data_range, dims=dims)
    found = found[~np.isnan(found) if mask is None else mask & ~np.isnan(found)]
    return float(found.mean(dtype=np.float64)) if found.size else math.nan


def ssim_map(synthetic: NDArray[Any], real: NDArray[Any], *, data_range: float = 1.0, dims: int = 2) -> NDArray[np.float32]:
    """Structural similarity around every voxel.

    Args:
        synthetic: (D, H, W).
        real: (D, H, W).
        data_range: of the scale.
        dims: 2 for windows in axial slices, 3 for windows of volumes.

    Returns:
        (D, H, W); NaN where the window would reach beyond the image.

    Raises:
        GeometryError: the shapes differ, or the image is smaller than a window.
    """
    import torch
    from monai.metrics.regression import compute_ssim_and_cs

    _require_one_shape(synthetic, real)
    if min(real.shape[:dims]) < SSIM_WINDOW:
        size = "x".join(map(str, real.shape[:dims]))
        raise GeometryError(f"{size} voxels are smaller than the window of SSIM, {SSIM_WINDOW} an edge")

    def compare(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float32]:
        pair = [torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)) for image in (one, other)]
        found, _ = compute_ssim_and_cs(*pair, dims, [SSIM_WINDOW] * dims, [SSIM_SIGMA] * dims, data_range)
        return np.asarray(found.numpy())

    similarity = np.full(real.shape, np.nan, dtype=np.float32)
    inner = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))
    if dims == 3:
        similarity[inner, inner, inner] = compare(synthetic[None, None], real[None, None])[0, 0]
        return similarity
    for start in range(0, real.shape[2], _AT_ONCE):
        slices = [np.moveaxis(image[..., start : start + _AT_ONCE], -1, 0)[:, None] for image in (synthetic, real)]
        similarity[inner, inner, start : start + _AT_ONCE] = np.moveaxis(compare(*slices)[:, 0], 0, -1)
    return similarity


def kl_divergence(
    p: NDArray[Any], q: NDArray[Any], *, value_range: tuple[float, float] = (0.0, 1.0), bins: int = 256, epsilon: float = 1e-6
) -> float:
    """KL(p || q) of the intensities of two sets of voxels, in nats; NaN if one has none.

    Their places do not matter, and their numbers may differ. Shares are smoothed, `(n_b / N + epsilon) / (1 + bins epsilon)`:
    a value that one of them never has costs much, and not endlessly much.

    Args:
        p: any shape.
        q: any shape.
        value_range: of the scale; values beyond it count to the first and the last bin.
        bins: of equal width over it.
        epsilon: added to the share of every bin.

    Example:
        >>> round(kl_divergence(np.array([0.2, 0.7]), np.array([0.2, 0.2, 0.2, 0.7]), bins=2, epsilon=0), 4)
        0.1438
    """
    if not p.size or not q.size:
        return math.nan
    low, high = value_range

    def shares(values: NDArray[Any]) -> NDArray[np.float64]:
        counts, _ = np.histogram(values.clip(low, high), bins=bins, range=value_range)
        return (counts / values.size + epsilon) / (1 + bins * epsilon)

    p_b, q_b = shares(p), shares(q)
    there = p_b > 0
    return float((p_b[there] * np.log(p_b[there] / q_b[there])).sum())


def worst_kl(bins: int = 256, epsilon: float = 1e-6) -> float:
    """The largest `kl_divergence` possible: all values of either in one bin, and not in the same.

    Example:
        >>> round(worst_kl(), 2)
        13.81
    """
    return math.log((1 + epsilon) / epsilon) / (1 + bins * epsilon)


def _error(synthetic: NDArray[Any], real: NDArray[Any]) -> NDArray[np.float64]:
    _require_one_shape(synthetic, real)
    return synthetic.astype(np.float64) - real.astype(np.float64)


def _require_one_shape(synthetic: NDArray[Any], real: NDArray[Any]) -> None:
    if synthetic.shape != real.shape:
        raise GeometryError(f"synthetic image has shape {synthetic.shape}, real one {real.shape}")
