from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modistill.data.case import Case
from modistill.data.geometry import Geometry, centred
from modistill.data.preprocessing import Preprocessing, brain_mask
from modistill.data.volume import Volume
from modistill.errors import CaseError, GeometryError, LabelError, RecipeError
from tiny_cohort import ALL, AVAILABLE, make_case

shapes = st.tuples(*[st.integers(5, 24)] * 3)
preprocessings = st.builds(
    Preprocessing,
    modalities=st.just(ALL),
    available=st.just(AVAILABLE),
    normalisation=st.sampled_from(["zscore", "hadnet"]),
    size=st.none() | st.tuples(*[st.integers(4, 30)] * 3),
    spacing_mm=st.none() | st.tuples(*[st.floats(0.6, 2.5)] * 3),
    crop=st.booleans(),
)


@given(preprocessings, st.integers(0, 9), st.sampled_from(["gone", "noise", "zero-free", "shifted affine"]))
def test_a_privileged_modality_changes_no_bit_of_the_available_channels(preprocessing, seed, how):
    case = make_case(seed=seed)
    grid = case.images["t1ce"]
    noise = np.random.default_rng(99).normal(1e4, 1e5, grid.shape).astype(np.float32)
    affine = grid.affine + np.array([[0, 0, 0, 0.05]] + [[0.0] * 4] * 3)
    other = {
        "gone": case.without("t1ce"),
        "noise": Case("p1", {**case.images, "t1ce": Volume(noise * (noise > 2e4))}, case.labels, case.convention),
        "zero-free": Case("p1", {**case.images, "t1ce": Volume(noise)}, case.labels, "brats2021"),
        "shifted affine": Case("p1", {"t1ce": Volume(grid.voxels, affine), **case.without("t1ce").images}, case.labels),
    }[how]
    preprocessing = Preprocessing(**{**preprocessing.to_json(), "convention": "brats2021"})
    one, two = preprocessing.apply(case), preprocessing.apply(other)
    kept = [ALL.index(name) for name in AVAILABLE]
    assert one.geometry == two.geometry
    np.testing.assert_array_equal(one.images[kept], two.images[kept])
    np.testing.assert_array_equal(one.mask, two.mask)
    np.testing.assert_array_equal(one.labels, two.labels)
    alone = preprocessing.for_patients().apply(case)
    np.testing.assert_array_equal(alone.images, one.images[kept])
    if how == "gone":
        assert two.presence.tolist() == [True, False, True, True]
        assert not two.images[1].any()


def test_zscore_by_hand():
    # one row of brain: 2, 4, 4, 4, 5, 5, 7, 9 has mean 5 and standard deviation 2
    voxels = np.zeros((10, 5, 5), np.float32)
    voxels[1:9, 2, 2] = [2, 4, 4, 4, 5, 5, 7, 9]
    prepared = Preprocessing(("t1",), ("t1",)).apply(Case("p", {"t1": Volume(voxels)}))
    assert prepared.images.shape == (1, 8, 1, 1)
    np.testing.assert_allclose(prepared.images.ravel(), [-1.5, -0.5, -0.5, -0.5, 0, 0, 1, 2])
    assert prepared.geometry.box == ((1, 9), (2, 3), (2, 3))


def test_hadnet_normalisation_by_hand():
    # brain: 31 voxels of 1 and one of 33: mean 2, variance (31 + 31**2) / 32 = 31, zero at -2 / sqrt(31); 33 lies above +3
    voxels = np.zeros((6, 6, 34), np.float32)
    voxels[2:4, 2:4, 1:9] = 1
    voxels[2, 2, 1] = 33
    prepared = Preprocessing(("t1",), ("t1",), normalisation="hadnet", crop=False).apply(Case("p", {"t1": Volume(voxels)}))
    low = -2 / np.sqrt(31)
    expected = np.where(voxels == 33, 1, np.where(voxels == 1, (-1 / np.sqrt(31) - low) / (3 - low), 0))
    np.testing.assert_allclose(prepared.images[0], expected, atol=1e-6)
    assert (prepared.images[0][voxels == 0] == 0).all()


def test_mask_is_the_intersection_and_the_whole_volume_where_nothing_is_stripped():
    a, b = np.zeros((2, 9, 9, 9), np.float32)
    a[2:6, 3:6, 3:6], b[3:7, 3:6, 3:6] = 1, 1
    assert np.array_equal(brain_mask({"t1": a, "t2": b}), (a * b) != 0)
    ct = np.random.default_rng(0).normal(-300, 500, (9, 9, 9)).round()
    ct[4, 4, 4] = 0
    assert brain_mask({"ct": ct}).all()
    assert np.array_equal(brain_mask({"ct": ct, "t1": a}), a != 0)
    with pytest.raises(CaseError, match=r"p: t2 is zero everywhere: the brain mask is empty"):
        brain_mask({"t1": a, "t2": b * 0}, case="p")
    b[:5] = 0
    a[5:] = 0
    with pytest.raises(CaseError, match="no voxel is non-zero in all of t1, t2"):
        brain_mask({"t1": a, "t2": b})


@given(shapes, preprocessings, st.integers(0, 3))
def test_crop_and_pad_come_back_bit_for_bit(shape, preprocessing, seed):
    preprocessing = Preprocessing(**{**preprocessing.to_json(), "spacing_mm": None})
    case = make_case(shape, spacing=(1, 0.7, 3.3), seed=seed, labels=False)
    prepared = preprocessing.apply(case)
    size = preprocessing.size or prepared.geometry.cropped_shape
    assert prepared.images.shape[1:] == size == prepared.geometry.prepared_shape
    marks = np.random.default_rng(seed).integers(1, 9, (2, *size))
    restored = preprocessing.restore(marks, prepared.geometry, outside=(-1, -2))
    assert restored.shape == (2, *shape)
    assert restored.dtype == marks.dtype
    # the way forward leads from the restored map to the prepared one again, and outside there is only what was said
    inside = np.stack([prepared.geometry.forward(np.ones(case.grid.shape, np.int64)[prepared.geometry.slices])] * 2) == 1
    again = np.stack([prepared.geometry.forward(channel[prepared.geometry.slices]) for channel in restored])
    np.testing.assert_array_equal(again[inside], marks[inside])
    assert np.count_nonzero(restored[0] > 0) == np.count_nonzero(inside[0])
    assert set(np.unique(restored[1][restored[1] < 0])) <= {-2}


@given(shapes, st.tuples(*[st.floats(0.5, 3)] * 3), st.tuples(*[st.floats(0.5, 3)] * 3))
def test_a_linear_map_survives_resampling_and_a_constant_everywhere(shape, spacing, target):
    shape_mm = [n * s for n, s in zip(shape, spacing, strict=True)]
    preprocessing = Preprocessing(("ct",), ("ct",), spacing_mm=target)
    positions = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    ramp = sum(np.meshgrid(positions[0], 2 * positions[1], -positions[2], indexing="ij")).astype(np.float32)
    volume = Volume(ramp + 1000, np.diag([*spacing, 1.0]))
    geometry = preprocessing.apply(Case("p", {"ct": volume})).geometry
    prepared = geometry.forward(ramp)
    new = geometry.prepared_spacing_mm
    covered = [n * s for n, s in zip(prepared.shape, new, strict=True)]
    assert all(old - 1e-2 <= now < old + step + 1e-2 for old, now, step in zip(shape_mm, covered, new, strict=True))
    # world positions of the new voxels, same centre: a linear map is reproduced where all neighbours exist
    there = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(prepared.shape, new, strict=True)]
    inner = np.ix_(*[np.abs(p) <= (n - 1) / 2 * s for p, n, s in zip(there, shape, spacing, strict=True)])
    exact = sum(np.meshgrid(there[0], 2 * there[1], -there[2], indexing="ij"))
    np.testing.assert_allclose(prepared[inner], exact[inner], atol=1e-3)
    ones = np.ones((1, *prepared.shape), np.float32)
    np.testing.assert_allclose(preprocessing.restore(ones, geometry), np.ones((1, *shape)), atol=1e-6)


def test_labels_and_probabilities_find_back_after_resampling():
    case = make_case((30, 26, 12), spacing=(1, 1, 3))
    preprocessing = Preprocessing(ALL, AVAILABLE, spacing_mm=(1, 1, 1))
    prepared = preprocessing.apply(case)
    assert prepared.geometry.prepared_spacing_mm == (1, 1, 1)
    onehot = np.stack([prepared.labels == index for index in range(4)]).astype(np.float32)
    restored = preprocessing.restore(onehot, prepared.geometry, outside=(1, 0, 0, 0))
    np.testing.assert_allclose(restored.sum(0), 1, atol=1e-5)
    expected = np.array([0, 1, 2, 0, 3])[case.labels.voxels]
    assert (restored.argmax(0) == expected).mean() > 0.995
    whole = preprocessing.restore(prepared.labels[None], prepared.geometry)[0]
    assert whole.dtype == np.uint8
    assert (whole == expected).mean() > 0.995


def test_a_larger_case_is_cut_at_test_time_and_refused_in_training():
    preprocessing = Preprocessing(ALL, AVAILABLE, size=(9, 40, 9))
    prepared = preprocessing.apply(make_case())
    assert prepared.geometry.is_cut
    assert prepared.images.shape == (4, 9, 40, 9)
    with pytest.raises(CaseError, match=r"p1: \d+x\d+x\d+ voxels do not fit size 9x40x9"):
        preprocessing.apply(make_case(), training=True)


def test_hadnet_pads_the_odd_voxel_at_the_end():
    assert [centred(n, 160) for n in (160, 155, 138, 161)] == [(0, 0), (2, 3), (11, 11), (0, -1)]


def test_what_cannot_be_prepared_is_refused_by_name():
    case = make_case()
    preprocessing = Preprocessing(ALL, AVAILABLE)
    with pytest.raises(CaseError, match="has t1ce, none of the available modalities flair, t1, t2"):
        preprocessing.apply(case.without(*AVAILABLE))
    flat = Case("p1", {**case.images, "t1": Volume((case.images["t1"].voxels > 0).astype(np.float32))})
    with pytest.raises(CaseError, match="p1: t1 is constant inside the brain"):
        preprocessing.apply(flat)
    with pytest.raises(LabelError, match="nobody says which convention"):
        preprocessing.apply(Case("p1", case.images, case.labels))
    foreign = case.labels.with_voxels(np.where(case.labels.voxels == 4, 7, case.labels.voxels))
    with pytest.raises(LabelError, match=r"p1: label values outside brats2021: 7"):
        preprocessing.apply(Case("p1", case.images, foreign, "brats2021"))
    prepared = preprocessing.apply(case)
    with pytest.raises(GeometryError, match="does not fit the prepared shape"):
        preprocessing.restore(np.zeros((1, 3, 3, 3)), prepared.geometry)


def test_odd_things_are_noticed():
    case = make_case((30, 30, 30))
    voxels = case.images["t1"].voxels.copy()
    voxels[15, 15, 15] = 1e6
    labels = case.labels.voxels.copy()
    labels[0, 0, :3] = 2
    odd = Case("p1", {**case.images, "t1": Volume(voxels)}, Volume(labels), "brats2021")
    notices = Preprocessing(ALL, AVAILABLE).apply(odd).notices
    assert [notice.split()[0] for notice in notices] == ["t1", "3"]


@settings(max_examples=20)
@given(preprocessings)
def test_records_survive_json(preprocessing):
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    geometry = preprocessing.apply(make_case(labels=False)).geometry
    assert Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"available": ("ct",)}, "available modality ct"),
        ({"modalities": ()}, "at least one"),
        ({"modalities": ("t1", "t1", *AVAILABLE)}, "each modality once"),
        ({"normalisation": "minmax"}, "known: zscore, hadnet"),
        ({"spacing_mm": (1, 0, 1)}, "three positive numbers"),
        ({"size": (1, 2)}, "three positive numbers"),
        ({"convention": "brats1999"}, "known: brats2021"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_wrong_settings_are_refused(change, words):
    with pytest.raises(RecipeError, match=words):
        Preprocessing.from_json({"modalities": ALL, "available": AVAILABLE, **change})
