import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from modistill.errors import GeometryError
from modistill.metrics.surface import bounding_box, hausdorff95_mm, surface_dice, surface_distances


def blob(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> NDArray[np.bool_]:
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    return np.asarray(noise > np.quantile(noise, 1 - share))


def monai_values(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, ...], tolerance_mm: float
) -> tuple[float, float]:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    tensors = [torch.from_numpy(np.ascontiguousarray(maps))[None, None] for maps in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hausdorff = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
        dice = compute_surface_dice(*tensors, [tolerance_mm], include_background=True, spacing=spacing)
    return hausdorff.item(), dice.item()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(*[st.integers(3, 18)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.9375, 1.0, 3.27])] * 3),
    shares=st.tuples(*[st.sampled_from([0.02, 0.1, 0.4])] * 2),
    tolerance_mm=st.sampled_from([0.0, 1.0, 2.5]),
)
def test_values_of_monai_on_the_whole_volume(
    seed: int, shape: tuple[int, ...], spacing: tuple[float, ...], shares: tuple[float, float], tolerance_mm: float
) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = (blob(rng, shape, share) for share in shares)
    hausdorff, dice = monai_values(prediction, reference, spacing, tolerance_mm)
    assert hausdorff95_mm(prediction, reference, spacing) == pytest.approx(hausdorff, abs=1e-3)
    assert surface_dice(prediction, reference, spacing, tolerance_mm) == pytest.approx(dice, abs=1e-5)


def test_values_of_monai_in_two_dimensions() -> None:
    rng = np.random.default_rng(3)
    prediction, reference = blob(rng, (30, 40), 0.2), blob(rng, (30, 40), 0.3)
    hausdorff, dice = monai_values(prediction, reference, (0.7, 2.0), 1.4)
    assert hausdorff95_mm(prediction, reference, (0.7, 2.0)) == pytest.approx(hausdorff, abs=1e-3)
    assert surface_dice(prediction, reference, (0.7, 2.0), 1.4) == pytest.approx(dice, abs=1e-5)


def test_distances_of_a_distance_transform() -> None:
    """Independent oracle: the Euclidean distance transform of the whole volume."""
    rng = np.random.default_rng(7)
    spacing = (1.0, 0.8, 2.5)
    prediction, reference = blob(rng, (20, 24, 15), 0.1), blob(rng, (20, 24, 15), 0.2)
    own = surface_distances(prediction, reference, spacing)
    surface = {name: maps & ~ndimage.binary_erosion(maps) for name, maps in (("p", prediction), ("r", reference))}
    to_reference = ndimage.distance_transform_edt(~surface["r"], sampling=spacing)[surface["p"]]
    to_prediction = ndimage.distance_transform_edt(~surface["p"], sampling=spacing)[surface["r"]]
    np.testing.assert_allclose(np.sort(own.from_prediction), np.sort(to_reference), atol=1e-9)
    np.testing.assert_allclose(np.sort(own.from_reference), np.sort(to_prediction), atol=1e-9)


def test_hd95_by_hand_directed_and_pooled() -> None:
    """A line of 20 voxels against its first one: distances 0..19 one way, 0 the other."""
    line, first = np.ones((1, 20), bool), np.zeros((1, 20), bool)
    first[0, 0] = True
    assert hausdorff95_mm(line, first, (1, 1)) == pytest.approx(18.05)  # 95 % of the way from 0 to 19
    assert hausdorff95_mm(first, line, (1, 1)) == pytest.approx(18.05)  # symmetric: the larger of two
    assert hausdorff95_mm(line, first, (1, 1), pooled=True) == pytest.approx(18.0)  # 21 distances: the 20th
    assert hausdorff95_mm(line, first, (1, 3)) == pytest.approx(3 * 18.05)


def test_surface_dice_by_hand() -> None:
    """Two parallel lines of voxels, 2 mm apart: nothing within 1 mm, all within 2."""
    sheet, other = np.zeros((5, 6), bool), np.zeros((5, 6), bool)
    sheet[1], other[3] = True, True
    assert surface_dice(sheet, other, (1, 1), 1) == 0
    assert surface_dice(sheet, other, (1, 1), 2) == 1
    other[1, :3] = True  # 3 of its 9 voxels now lie on the sheet, and 3 of the sheet's 6 on it
    assert surface_dice(sheet, other, (1, 1), 0) == pytest.approx((3 + 3) / (6 + 9))


@pytest.mark.parametrize("step", [0.1, 0.3, 0.9, 1.1])
def test_a_distance_equal_to_the_tolerance_is_within_it(step: float) -> None:
    """Positions are multiples of the spacing: 9 x 0.9 - 8 x 0.9 exceeds 0.9 by a rounding error."""
    for place in range(12):
        a, b = np.zeros((1, 16), bool), np.zeros((1, 16), bool)
        a[0, 0], b[0, 0] = True, True
        a[0, place + 2], b[0, place + 3] = True, True
        assert surface_dice(a, b, (1, step), step) == 1


def test_empty_regions_are_infinite_or_undefined_never_zero() -> None:
    none, some = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    some[1:3, 1:3, 1] = True
    for pair in ((none, some), (some, none)):
        assert hausdorff95_mm(*pair, (1, 1, 1)) == math.inf
        assert hausdorff95_mm(*pair, (1, 1, 1), pooled=True) == math.inf
        assert surface_dice(*pair, (1, 1, 1), 100) == 0
    assert math.isnan(hausdorff95_mm(none, none, (1, 1, 1)))
    assert math.isnan(hausdorff95_mm(none, none, (1, 1, 1), pooled=True))
    assert math.isnan(surface_dice(none, none, (1, 1, 1), 1))


def test_the_edge_of_the_image_is_a_surface() -> None:
    everything = np.ones((4, 5, 6), bool)
    assert surface_distances(everything, everything, (1, 1, 1)).from_prediction.size == 4 * 5 * 6 - 2 * 3 * 4


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([0.5, 2.0, 7.0]))
def test_distances_scale_with_spacing_and_ignore_padding(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = blob(rng, (9, 10, 11), 0.2), blob(rng, (9, 10, 11), 0.2)
    value = hausdorff95_mm(prediction, reference, (1, 2, 3))
    assert hausdorff95_mm(prediction, reference, (factor, 2 * factor, 3 * factor)) == pytest.approx(factor * value)
    padded = [np.pad(maps, ((2, 3), (0, 4), (1, 1))) for maps in (prediction, reference)]
    assert hausdorff95_mm(*padded, (1, 2, 3)) == pytest.approx(value)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_bounding_box_is_the_smallest(seed: int) -> None:
    region = np.random.default_rng(seed).random((5, 6, 7)) < 0.02
    box = bounding_box(region)
    assert region[box].sum() == region.sum()
    if region.any():
        found = np.argwhere(region)
        assert box == tuple(slice(a, b + 1) for a, b in zip(found.min(axis=0), found.max(axis=0), strict=True))
    else:
        assert region[box].size == 0


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, -1), (1, 1, float("nan"))])
def test_spacing_must_be_positive_and_complete(spacing: tuple[float, ...]) -> None:
    with pytest.raises(GeometryError, match="3 positive voxel sizes in mm are needed, not"):
        hausdorff95_mm(np.ones((2, 2, 2)), np.ones((2, 2, 2)), spacing)


def test_shapes_must_agree() -> None:
    with pytest.raises(GeometryError, match=r"prediction has shape \(2, 2\), reference \(2, 3\)"):
        surface_dice(np.ones((2, 2)), np.ones((2, 3)), (1, 1), 1)
