"""Volumes and their grids: a refusal in voxels and in world space, with the figure."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modistill.data.volume import Volume, grid_distance_mm, require_same_grid, voxel_sizes_mm
from modistill.errors import GeometryError


def moved(mm=0.0, degrees=0.0, spacing=(1.0, 1.0, 1.0), flip=False, shape=(20, 20, 20)):
    angle = np.radians(degrees)
    affine = np.diag([*spacing, 1.0])
    affine[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ affine[:2, :2]
    affine[0, 3] = mm
    if flip:
        affine[0] *= -1
    return Volume(np.zeros(shape, dtype=np.int16), affine)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (moved(shape=(20, 20, 21)), "b has shape 20x20x21, a has 20x20x20"),
        (moved(spacing=(1, 1, 1.2)), "b has spacing 1x1x1.2 mm, a has 1x1x1 mm"),
        (moved(mm=30), "b is shifted against a: corners lie up to 30.0 mm apart, 0.1 mm allowed"),
        (moved(mm=0.4), "0.4 mm apart"),
        (moved(degrees=10), "b is turned or flipped against a"),
        (moved(flip=True), "b is turned or flipped against a: corners lie up to 38.0 mm apart"),
    ],
)
def test_grids_that_differ_are_refused_with_the_figure(other, reason):
    with pytest.raises(GeometryError, match=reason) as caught:
        require_same_grid(moved(), other, reference_name="a", other_name="b")
    assert caught.value.remedy


@pytest.mark.parametrize("other", [moved(), moved(mm=0.05), moved(mm=1e-5), moved(degrees=0.05)])
def test_noise_below_the_tolerance_is_accepted(other):
    require_same_grid(moved(), other, reference_name="a", other_name="b")


@given(st.tuples(*[st.floats(-50, 50)] * 3))
def test_a_shift_is_measured_as_such(shift):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    other = affine.copy()
    other[:3, 3] += shift
    grid = np.zeros((3, 4, 5))
    assert grid_distance_mm(Volume(grid, affine), Volume(grid, other)) == pytest.approx(float(np.linalg.norm(shift)))


def test_spacing_and_volume_of_an_oblique_grid():
    volume = moved(degrees=30, spacing=(1.0, 2.0, 5.0))
    assert volume.spacing_mm == pytest.approx((1, 2, 5))
    assert voxel_sizes_mm(volume.affine) == volume.spacing_mm
    assert volume.voxel_volume_ml == pytest.approx(0.01)


def test_other_voxels_on_the_same_grid():
    volume = moved(mm=3)
    ones = volume.with_voxels(np.ones((20, 20, 20)))
    assert ones.voxels.sum() == 8000
    np.testing.assert_array_equal(ones.affine, volume.affine)
    with pytest.raises(GeometryError, match="does not fit"):
        volume.with_voxels(np.ones((20, 20, 19)))


@pytest.mark.parametrize(
    ("voxels", "affine"),
    [
        (np.zeros((4, 4)), np.eye(4)),
        (np.zeros((4, 4, 4, 1)), np.eye(4)),
        (np.zeros((4, 4, 4)), np.diag([1.0, 0, 1, 1])),
        (np.zeros((4, 4, 4)), np.diag([1.0, np.nan, 1, 1])),
        (np.zeros((4, 4, 4)), np.eye(3)),
    ],
)
def test_what_is_no_volume(voxels, affine):
    with pytest.raises(GeometryError):
        Volume(voxels, affine)


def test_short_description():
    assert repr(moved(spacing=(1, 1, 2.5))) == "Volume(20x20x20 int16, 1x1x2.5 mm)"
