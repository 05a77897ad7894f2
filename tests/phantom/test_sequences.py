from dataclasses import replace

import numpy as np
import pytest

from modistill.phantom.sequences import MODALITIES, TISSUES, Scan, Tissue, acquire, draw_scans, draw_tissues, signal

LONG = Scan(1e9, 0.0, None, False, gain=1.0, noise=0.0, slice_mm=1.0, slice_axis=2, bias=0.0)


def at(scan: Scan, t1: float, t2: float, concentration: float = 0.0, density: float = 1.0) -> float:
    values = (np.array([value]) for value in (t1, t2, concentration))
    return float(signal(scan, Tissue(t1, t2, density), *values)[0])


def test_spin_echo_by_hand() -> None:
    """TR = T1 ln 2 recovers half, TE = T2 ln 4 leaves a quarter: 0.8 * 0.5 * 0.25."""
    scan = replace(LONG, tr_ms=1000 * np.log(2), te_ms=80 * np.log(4))
    assert at(scan, 1000, 80, density=0.8) == pytest.approx(0.1)


def test_inversion_nulls_the_tissue_whose_t1_it_waits_for() -> None:
    scan = replace(LONG, ti_ms=3000 * np.log(2))
    assert at(scan, 3000, 1000) == pytest.approx(0, abs=1e-6)
    assert at(scan, 1000, 1000) == pytest.approx(1 - 2 * 0.5**3)


def test_spoiled_gradient_echo_by_hand() -> None:
    """TR = T1 ln 2 makes E1 one half: sin 60 (1 - 1/2) / (1 - 1/2 cos 60), and TE = T2 ln 2 halves it."""
    scan = replace(LONG, tr_ms=1000 * np.log(2), te_ms=50 * np.log(2), flip_deg=60.0)
    assert at(scan, 1000, 50) == pytest.approx(0.5 * (np.sqrt(3) / 2) * 0.5 / 0.75)
    right = replace(scan, flip_deg=90.0)
    assert at(right, 1000, 50) == pytest.approx(at(replace(scan, flip_deg=None), 1000, 50)), "90 degrees is saturation recovery"


def test_fat_suppression_weakens_the_share_that_is_fat() -> None:
    marrow = Tissue(300, 100, 0.8, fat=0.5)
    values = [np.array([value]) for value in (300.0, 100.0, 0.0)]
    whole, left = (float(signal(replace(LONG, fat_left=part), marrow, *values)[0]) for part in (1.0, 0.1))
    assert left == pytest.approx(whole * 0.55)
    assert float(signal(replace(LONG, fat_left=0.1), replace(marrow, fat=0.0), *values)[0]) == pytest.approx(whole)


def test_gadolinium_counts_only_after_contrast_and_brightens_t1() -> None:
    plain = replace(LONG, tr_ms=550.0, te_ms=10.0)
    after = replace(plain, contrast=True)
    assert at(plain, 1000, 100, 0.2) == at(plain, 1000, 100, 0.0) == at(after, 1000, 100, 0.0)
    assert at(after, 1000, 100, 0.2) == pytest.approx((1 - np.exp(-0.55 * 1.9)) * np.exp(-0.01 * 11.1), rel=1e-5)


def test_an_empty_signal_leaves_rayleigh_noise_and_zero_outside() -> None:
    """Magnitude noise without signal has the mean sigma sqrt(pi / 2)."""
    shape = (24, 24, 24)
    brain = np.zeros(shape, bool)
    brain[4:-4, 4:-4, 4:-4] = True
    axes = tuple(np.arange(24, dtype=np.float32) for _ in range(3))
    scan = replace(LONG, noise=0.1, gain=1e4)
    image = acquire(np.random.default_rng(0), scan, np.zeros(shape, np.float32), brain, axes, white=0.5)
    assert image[brain].mean() == pytest.approx(1e4 * 0.05 * np.sqrt(np.pi / 2), rel=0.02)
    assert (image[~brain] == 0).all()
    assert (image[brain] >= 1).all()
    np.testing.assert_array_equal(image, np.rint(image))


def test_thick_slices_blur_one_axis_and_keep_a_constant() -> None:
    shape = (20, 20, 20)
    axes = tuple(np.arange(20, dtype=np.float32) for _ in range(3))
    brain = np.zeros(shape, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    scan = replace(LONG, slice_mm=5.0, slice_axis=1, gain=1000.0)
    flat = acquire(np.random.default_rng(0), scan, brain.astype(np.float32), brain, axes, white=1.0)
    np.testing.assert_array_equal(flat[brain], 1000)
    point = np.zeros(shape, np.float32)
    point[10, 10, 10] = 1
    seen = acquire(np.random.default_rng(0), scan, point, brain, axes, white=1.0)
    assert seen[10, 8, 10] > 10 > seen[8, 10, 10]


def test_patients_and_scanners_differ_but_stay_possible() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tissues, scans = draw_tissues(rng), draw_scans(rng)
        assert set(tissues) == set(TISSUES)
        assert tuple(scans) == MODALITIES
        assert all(t.t1_ms > t.t2_ms > 0 and t.gadolinium_mmol_l >= 0 for t in tissues.values())
        assert [name for name, scan in scans.items() if scan.contrast] == ["t1ce"]
