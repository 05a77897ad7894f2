"""A known field, taken out again."""

from __future__ import annotations

import numpy as np
import pytest

from modistill.data import preprocessing
from modistill.data.bias import correct_bias
from modistill.data.case import Case
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError

SHAPE, SPACING = (26, 24, 16), (8.0, 8.0, 10.0)


def phantom() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An ellipsoid of two tissues in air, the tissue each voxel is of, and a field that doubles from one side to the other."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    tissue = np.where(x**2 + y**2 + z**2 < 0.8, 1, 0) + (((4 * x) ** 2 + (3 * y) ** 2 + z**2) % 1 > 0.6)
    tissue = np.where(x**2 + y**2 + z**2 < 0.8, tissue, 0)
    rng = np.random.default_rng(0)
    image = np.array([0, 300, 500])[tissue] * (1 + 0.03 * rng.standard_normal(SHAPE))
    return image.astype(np.float32), tissue, np.exp(0.4 * x + 0.25 * y - 0.2 * z**2).astype(np.float32)


def spread(image: np.ndarray, tissue: np.ndarray) -> list[float]:
    """Coefficient of variation in each tissue."""
    return [float(image[tissue == index].std() / image[tissue == index].mean()) for index in (1, 2)]


def test_the_spread_inside_each_tissue_falls_by_more_than_half() -> None:
    image, tissue, field = phantom()
    corrected = correct_bias(image * field, SPACING)
    assert corrected.dtype == np.float32
    for before, after in zip(spread(image * field, tissue), spread(corrected, tissue), strict=True):
        assert before > 0.15
        assert after < before / 2
    np.testing.assert_array_equal(corrected == 0, image == 0)
    np.testing.assert_array_equal(correct_bias(image * field, SPACING), corrected)


def test_it_comes_before_landmarks_and_normalisation_and_touches_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    image, _, field = phantom()
    monkeypatch.setattr(preprocessing, "correct_bias", lambda voxels, spacing_mm, **_: voxels / field)
    affine = np.diag([*SPACING, 1.0])
    case = Case("p", {"ct": Volume(image + 7, affine), "mr": Volume(image * field, affine)})
    how = {"modalities": ("ct", "mr"), "available": ("ct", "mr"), "normalisation": {"ct": (0, 500), "mr": "landmarks"}}
    flat = Case("p", {**case.images, "mr": Volume(image * field / field, affine)})
    plain, corrected = Preprocessing(**how), Preprocessing(**how, n4=("mr",))
    standard = plain.landmarks_of(flat)
    assert corrected.landmarks_of(case) == standard != plain.landmarks_of(case)
    plain, corrected = (Preprocessing(**how, n4=names, landmarks=standard) for names in ((), ("mr",)))
    np.testing.assert_array_equal(corrected.apply(case).images, plain.apply(flat).images)
    np.testing.assert_array_equal(corrected.apply(case.without("mr")).images, plain.apply(case.without("mr")).images)


def test_a_modality_that_is_not_read_needs_no_correction() -> None:
    how = Preprocessing(("ct", "mr"), ("ct",), n4=("mr",))
    assert how.for_patients().n4 == ()
    assert Preprocessing.from_json(how.to_json()) == how


def test_a_single_slice_is_refused_by_name() -> None:
    with pytest.raises(CaseError, match=r"p7: N4 finds no bias field in mr: .* \(look at the image, or leave out --n4\)"):
        correct_bias(np.random.default_rng(0).uniform(1, 9, (40, 40, 1)), (1, 1, 1), modality="mr", case="p7")
