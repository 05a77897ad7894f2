import math

import numpy as np
import pytest

from modistill.errors import GeometryError
from modistill.metrics.overlap import dice
from modistill.metrics.volume import volume_ml


def test_dice_by_hand() -> None:
    prediction, reference = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    prediction[0, :2, :2] = 1  # 4 voxels
    reference[0, 1:3, :3] = 1  # 6 voxels, 2 shared
    assert dice(prediction, reference) == pytest.approx(4 / 10)
    assert dice(prediction, reference, smooth=1) == pytest.approx(5 / 11)


def test_dice_is_symmetric_and_one_for_equal_maps() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 6, 7, 5)) < 0.4
    assert dice(a, b) == dice(b, a)
    assert dice(a, a) == 1


def test_empty_maps() -> None:
    none, three = np.zeros(5, bool), np.array([1, 1, 1, 0, 0], bool)
    assert math.isnan(dice(none, none))
    assert dice(none, none, smooth=1) == 1
    assert dice(three, none) == dice(none, three) == 0
    assert dice(three, none, smooth=1) == 0.25  # three false voxels, smoothed


def test_counts_do_not_overflow_small_types() -> None:
    many = np.ones((300, 1), np.uint8)
    assert dice(many, many) == 1


def test_shapes_must_agree() -> None:
    with pytest.raises(GeometryError, match=r"prediction has shape \(2,\), reference \(3,\)"):
        dice(np.ones(2), np.ones(3))


def test_volume_counts_voxels_of_any_size() -> None:
    region = np.zeros((4, 4, 4), bool)
    region[:2, :2, :2] = True
    assert volume_ml(region, (1, 2, 5)) == pytest.approx(8 * 10 / 1000)
    assert volume_ml(np.zeros((2, 2)), (1, 1)) == 0
