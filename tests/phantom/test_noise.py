import numpy as np
import pytest

from modistill.phantom.noise import smooth_field


def axes(step: float) -> tuple[np.ndarray, ...]:
    return tuple(np.arange(-60, 60, step, dtype=np.float32) for _ in range(3))


@pytest.mark.parametrize("low_pass", [False, True])
def test_a_field_has_zero_mean_and_unit_variance(low_pass: bool) -> None:
    values = smooth_field(np.random.default_rng(0), 15.0, low_pass=low_pass).on(axes(4.0))
    assert abs(values.mean()) < 0.1
    assert values.std() == pytest.approx(1, abs=0.1)


def test_points_and_grid_give_the_same_values() -> None:
    field = smooth_field(np.random.default_rng(1), 20.0)
    grid = axes(15.0)
    points = np.meshgrid(*grid, indexing="ij")
    np.testing.assert_allclose(field.at(*(p.ravel() for p in points)).reshape(points[0].shape), field.on(grid), atol=2e-5)


def test_a_field_may_reach_further_and_ends_as_it_is_at_its_edge() -> None:
    rng = np.random.default_rng(5)
    field = smooth_field(rng, 30.0, reach_mm=(200.0, 50.0, 50.0))
    far = np.array([180.0, 190.0], dtype=np.float32)
    here = np.zeros(2, dtype=np.float32)
    assert np.ptp(field.at(far, here, here)) > 1e-3
    np.testing.assert_allclose(field.at(here, far + 100, here), field.at(here, far + 300, here), atol=1e-6)


def test_a_finer_grid_shows_the_same_field() -> None:
    field = smooth_field(np.random.default_rng(2), 20.0)
    np.testing.assert_allclose(field.on(axes(6.0))[:10, :10, :10], field.on(axes(3.0))[:20:2, :20:2, :20:2], atol=2e-5)


def test_a_field_varies_over_its_wavelength() -> None:
    """A tenth of a wavelength away the field is nearly the same, half a wavelength away it is another."""
    field = smooth_field(np.random.default_rng(3), 24.0)
    x, y, z = (np.random.default_rng(4).uniform(-60, 60, (3, 4000))).astype(np.float32)
    here = field.at(x, y, z)
    assert np.corrcoef(here, field.at(x + 2.4, y, z))[0, 1] > 0.8
    assert np.corrcoef(here, field.at(x + 12.0, y, z))[0, 1] < 0.1
