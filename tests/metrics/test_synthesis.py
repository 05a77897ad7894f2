"""Numbers of synthetic images: worked out by hand, by plain implementations, and what must always hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

from modistill.errors import GeometryError
from modistill.metrics.synthesis import kl_divergence, mae, nmae, psnr, ssim, ssim_map, worst_kl, worst_nmae

SHAPE = (15, 13, 12)
IMAGES = arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))


def pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A real image, and one that resembles it."""
    rng = np.random.default_rng(seed)
    real = gaussian_filter(rng.random(SHAPE), 1).astype(np.float32)
    return (real + rng.normal(0, 0.05, SHAPE)).clip(0, 1).astype(np.float32), real


def test_errors_by_hand() -> None:
    """Errors 0, 10 and 20 of a range of 100 and a sum of 95: mean 10, share 30 / 95, squares 500 / 3."""
    synthetic, real = np.array([5.0, 20.0, 80.0]), np.array([5.0, 30.0, 60.0])
    assert mae(synthetic, real) == 10
    assert nmae(synthetic, real) == pytest.approx(30 / 95)
    assert psnr(synthetic, real, data_range=100) == pytest.approx(10 * math.log10(60))
    assert psnr(synthetic / 100, real / 100) == pytest.approx(psnr(synthetic, real, data_range=100))


def test_extremes() -> None:
    zeros, ones = np.zeros(SHAPE), np.ones(SHAPE)
    assert (mae(ones, ones), psnr(ones, ones), ssim(ones, ones)) == (0, math.inf, pytest.approx(1))
    assert (nmae(zeros, ones), nmae(2 * ones, ones), psnr(zeros, ones)) == (1, 1, 0)
    nothing = np.zeros(0)
    assert math.isnan(nmae(ones, zeros))
    assert math.isnan(nmae(nothing, nothing))
    assert all(math.isnan(number) for number in (mae(nothing, nothing), psnr(nothing, nothing), kl_divergence(nothing, zeros)))
    assert math.isnan(ssim(zeros, zeros, np.zeros(SHAPE, bool)))


@pytest.mark.parametrize("dims", [2, 3])
def test_ssim_as_another_implementation_has_it(dims: int) -> None:
    synthetic, real = (image.astype(np.float64) for image in pair())
    sigma = (1.5,) * dims + (0,) * (3 - dims)

    def mean(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma, radius=(5,) * dims + (0,) * (3 - dims))

    m_s, m_r = mean(synthetic), mean(real)
    v_s, v_r = mean(synthetic**2) - m_s**2, mean(real**2) - m_r**2
    v_sr = mean(synthetic * real) - m_s * m_r
    expected = (2 * m_s * m_r + 1e-4) * (2 * v_sr + 9e-4) / ((m_s**2 + m_r**2 + 1e-4) * (v_s + v_r + 9e-4))
    inner = (slice(5, -5),) * dims
    found = ssim_map(synthetic, real, dims=dims)
    np.testing.assert_allclose(found[inner], expected[inner], atol=2e-4)  # variances in single precision
    outside = np.ones(SHAPE, bool)
    outside[inner] = False
    assert np.isnan(found[outside]).all()
    assert ssim(synthetic, real, dims=dims) == pytest.approx(expected[inner].mean(), abs=1e-4)
    assert ssim(100 * synthetic, 100 * real, data_range=100, dims=dims) == pytest.approx(expected[inner].mean(), abs=1e-4)


def test_ssim_of_constant_images_by_hand() -> None:
    """Without variance the luminance remains: (2 * 0.2 * 0.6 + c1) / (0.04 + 0.36 + c1)."""
    found = ssim(np.full(SHAPE, 0.2), np.full(SHAPE, 0.6))
    assert found == pytest.approx((0.24 + 1e-4) / (0.4 + 1e-4), abs=1e-4)


def test_ssim_in_a_mask_is_that_of_its_voxels() -> None:
    synthetic, real = pair()
    mask = np.zeros(SHAPE, bool)
    mask[4:8, 5:7, 3] = True  # index 4 has no window
    assert ssim(synthetic, real, mask) == pytest.approx(float(ssim_map(synthetic, real)[5:8, 5:7, 3].mean()))


def test_slices_are_judged_each_for_itself() -> None:
    """More slices than are compared at once, too."""
    synthetic, real = (np.tile(image, (1, 1, 3)) for image in pair())
    found = ssim_map(synthetic, real)
    np.testing.assert_allclose(found[..., 30:31], ssim_map(synthetic[..., 30:31], real[..., 30:31]), atol=1e-6)


def test_divergence_by_hand() -> None:
    """Shares 3/4, 1/4 and 1/4, 3/4 of two bins: (3/4 - 1/4) ln 3 either way."""
    p, q = np.array([0.1, 0.2, 0.3, 0.9]), np.array([0.4, 0.6, 0.7, 1.0])
    assert kl_divergence(p, q, bins=2, epsilon=0) == pytest.approx(math.log(3) / 2)
    smooth = [(0.75 + 0.5) / 2, (0.25 + 0.5) / 2]
    expected = smooth[0] * math.log(smooth[0] / smooth[1]) + smooth[1] * math.log(smooth[1] / smooth[0])
    assert kl_divergence(p, q, bins=2, epsilon=0.5) == pytest.approx(expected)
    assert kl_divergence(1500 * p - 1000, 1500 * q - 1000, value_range=(-1000, 500), bins=2, epsilon=0) == pytest.approx(
        math.log(3) / 2
    )


def test_divergence_is_not_symmetric_and_knows_no_places() -> None:
    synthetic, real = pair()
    there, back = kl_divergence(real, synthetic), kl_divergence(synthetic, real)
    assert there != pytest.approx(back)
    assert kl_divergence(real.ravel()[::-1], synthetic) == pytest.approx(there)
    assert kl_divergence(np.tile(real, 2), synthetic) == pytest.approx(there)


def test_the_largest_divergence_is_reached() -> None:
    dark, bright = np.zeros(7), np.ones(1000)
    assert kl_divergence(dark, bright) == pytest.approx(worst_kl())
    assert kl_divergence(bright, dark, bins=4, epsilon=0.01) == pytest.approx(worst_kl(4, 0.01))


@given(IMAGES, IMAGES)
def test_bounds(synthetic: np.ndarray, real: np.ndarray) -> None:
    assert kl_divergence(real, synthetic) + 1e-12 >= 0
    assert kl_divergence(real, synthetic) <= worst_kl() + 1e-9
    assert kl_divergence(real, real) == 0
    assert psnr(synthetic, real) >= 0
    assert psnr(synthetic, real) == psnr(real, synthetic)
    if real.any():
        assert 0 <= nmae(synthetic, real) <= worst_nmae(real) + 1e-9
        assert worst_nmae(real) >= 1
    assert -1 - 1e-5 <= ssim(synthetic, real) <= 1 + 1e-5


def test_what_cannot_be_compared_is_one_line() -> None:
    for metric in (mae, nmae, psnr, ssim):
        with pytest.raises(GeometryError, match=r"synthetic image has shape \(15, 13, 12\), real one \(15, 13, 11\)"):
            metric(np.zeros(SHAPE), np.zeros((15, 13, 11)))
    with pytest.raises(GeometryError, match="10x13 voxels are smaller than the window of SSIM, 11 an edge"):
        ssim(np.zeros((10, 13, 20)), np.zeros((10, 13, 20)))
