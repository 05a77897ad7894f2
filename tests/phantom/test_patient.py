import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modistill.errors import RecipeError
from modistill.phantom.patient import Patient, phantom_case, phantom_patient, spacing_mm

TINY = (32, 32, 32)


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return [phantom_patient(index, seed=3, shape=(48, 60, 52)) for index in range(8)]


def test_a_case_is_a_pure_function_of_its_arguments() -> None:
    first, again, other = (phantom_case(index, seed=5, shape=TINY) for index in (1, 1, 2))
    for name in first.modalities:
        np.testing.assert_array_equal(first.images[name].voxels, again.images[name].voxels)
        assert (first.images[name].voxels != other.images[name].voxels).any()
    np.testing.assert_array_equal(first.labels.voxels, again.labels.voxels)


def test_a_brain_is_what_it_always_was() -> None:
    """Numbers noted when the brain was the only phantom: runs and results that rest on a seed keep their patients."""
    case = phantom_case(0, seed=4, shape=(24, 28, 24))
    means = {"t1": 330.2178, "t1ce": 374.4165, "t2": 786.7576, "flair": 239.5685}
    brightest = {"t1": 1283, "t1ce": 1846, "t2": 6236, "flair": 1728}
    inside = {"t1": 784, "t1ce": 803, "t2": 4694, "flair": 739}
    for name, volume in case.images.items():
        assert volume.voxels.mean(dtype=float) == pytest.approx(means[name], rel=1e-5)
        assert volume.voxels.max() == pytest.approx(brightest[name], abs=1)
        assert volume.voxels[12, 14, 12] == pytest.approx(inside[name], abs=1)
    assert np.bincount(case.labels.voxels.ravel()).tolist() == [15687, 39, 360, 0, 42]


def test_the_same_patient_at_another_size() -> None:
    """Volumes of brain and whole tumour in ml do not depend on the voxel size."""
    coarse, fine = (phantom_case(0, seed=1, shape=shape) for shape in ((48, 60, 50), (74, 92, 78)))
    for part in (lambda c: c.images["t1"].voxels > 0, lambda c: c.labels.voxels > 0):
        small, large = (part(case).sum() * case.grid.voxel_volume_ml for case in (coarse, fine))
        assert small == pytest.approx(large, rel=0.05)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.permutations((20, 33, 27)))
def test_any_seed_and_odd_size_gives_a_head_with_a_tumour(seed: int, index: int, shape: list[int]) -> None:
    case = phantom_case(index, seed=seed, shape=tuple(shape))
    brain = case.images["t1"].voxels > 0
    assert 900 < brain.sum() * case.grid.voxel_volume_ml < 2000
    assert not brain[[0, -1]].all(axis=(1, 2)).any()
    assert (case.labels.voxels[~brain] == 0).all()
    assert (case.labels.voxels > 0).any()
    assert set(np.unique(case.labels.voxels)) <= {0, 1, 2, 4}
    for volume in case.images.values():
        assert ((volume.voxels > 0) == brain).all()
        assert volume.voxels.max() <= np.iinfo(np.int16).max


def test_geometry_is_that_of_brats() -> None:
    case = phantom_case(0, seed=0, shape=(32, 32, 24))
    native = case.grid.native
    assert native is not None
    size = spacing_mm((32, 32, 24))
    np.testing.assert_allclose(native.affine, [[-size, 0, 0, 0], [0, -size, 0, 31 * size], [0, 0, size, 0], [0, 0, 0, 1]])
    first_native_voxel = native.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(case.grid.affine @ [31, 31, 0, 1], first_native_voxel)
    assert case.convention == "brats2021"


def test_a_slice_goes_through_the_tumour() -> None:
    case = phantom_case(0, seed=0, shape=(64, 64, 1))
    assert case.grid.shape == (64, 64, 1)
    assert case.grid.spacing_mm[0] == spacing_mm((64, 64, 64))
    assert np.isin(case.labels.voxels, (1, 4)).any()


def test_shares_of_all_tissues_fill_every_voxel(patients: list[Patient]) -> None:
    for patient in patients[:3]:
        total = np.sum(list(patient.shares.values()), axis=0)
        brain = patient.case.images["t1"].voxels > 0
        np.testing.assert_allclose(total[brain], 1, atol=0.02)
        assert min(share.min() for share in patient.shares.values()) >= -1e-5


def test_tissue_volumes_are_those_of_adults(patients: list[Patient]) -> None:
    """Wide limits around textbook volumes: grey matter 700, white matter 500 ml of a brain of 1.2 to 1.8 l with its CSF."""
    for patient in patients:
        ml = {name: float(share.sum()) * patient.case.grid.voxel_volume_ml for name, share in patient.shares.items()}
        white = ml["white"] + ml["oedema"] + ml["necrosis"] + ml["solid"] + ml["enhancing"]
        assert 400 < ml["grey"] < 850
        assert 350 < white < 850
        assert 80 < ml["csf"] < 450
        assert 5 < ml["deep"] < 60


def test_the_tumour_keeps_to_its_rules(patients: list[Patient]) -> None:
    for patient in patients:
        labels = patient.case.labels.voxels
        enhancing, oedema = (labels == 4).sum(), labels == 2
        assert patient.kind != "none" or enhancing == 0
        assert (patient.shares["grey"][oedema] > 0.5).mean() < 0.02, "oedema spares the cortex"
        assert (patient.shares["csf"][labels > 0] > 0.5).mean() < 0.02
        side = labels[labels.shape[0] // 2 :].astype(bool).sum() / (labels > 0).sum()
        assert max(side, 1 - side) > 0.6, "a tumour lies on one side"


def test_kinds_of_enhancement_occur_as_often_as_stated() -> None:
    """Of 23 real patients 4 had no ET at all and 5 more under 1.5 ml; draws alone, no images."""
    from modistill.phantom.anatomy import draw_anatomy
    from modistill.phantom.tumour import draw_tumour

    anatomy = draw_anatomy(np.random.default_rng(0))
    kinds = [draw_tumour(np.random.default_rng(seed), anatomy).kind for seed in range(40)]
    for kind, share in (("none", 0.16), ("sparse", 0.16), ("rim", 0.50)):
        assert kinds.count(kind) / 40 == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / 40))


@pytest.mark.parametrize("shape", [(8, 64, 64), (1, 1, 64), (1, 8, 64), (0, 64, 64)])
def test_a_grid_too_small_for_a_head_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(RecipeError, match="too small for a head"):
        phantom_case(0, seed=0, shape=shape)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(RecipeError, match="must not be negative"):
        phantom_case(-1, seed=0, shape=TINY)
    with pytest.raises(RecipeError, match="must not be negative"):
        phantom_case(0, seed=-1, shape=TINY)
