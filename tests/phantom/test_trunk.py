"""Chest and abdomen: where things lie, what they look like, and how hard they are to tell apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.stats import rankdata

from modistill.data.naming import conventions
from modistill.data.preprocessing import brain_mask
from modistill.errors import RecipeError
from modistill.phantom.lung_tumour import SEATS, draw_lung_tumour
from modistill.phantom.patient import BODIES, phantom_case
from modistill.phantom.trunk_patient import TrunkPatient, abdomen_patient, chest_patient, spacing_mm

COARSE = (48, 40, 16)
SOFT = ("muscle", "heart", "blood", "gut", "liver", "spleen", "collapse", "disc", "cord")


@pytest.fixture(scope="module")
def chests() -> list[TrunkPatient]:
    return [chest_patient(index, seed=0, shape=(64, 52, 20)) for index in (0, 1, 6, 8, 10, 18)]


@pytest.fixture(scope="module")
def abdomens() -> list[TrunkPatient]:
    return [abdomen_patient(index, seed=0, shape=(64, 52, 20)) for index in range(3)]


def middle(patient: TrunkPatient, *tissues: str) -> np.ndarray:
    """Where tissues lie on average, as fractions of the grid: from left, from posterior, from inferior."""
    share = np.sum([patient.shares[name] for name in tissues], axis=0)
    return np.array([np.average(np.arange(n) / (n - 1), weights=share.sum(axis=others)) for n, others in planes(share.shape)])


def planes(shape: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    return [(shape[axis], tuple(other for other in range(3) if other != axis)) for axis in range(3)]


def pure(patient: TrunkPatient, modality: str, tissue: str, share: float = 0.97) -> np.ndarray:
    return patient.case.images[modality].voxels[patient.shares[tissue] > share]


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    n, m = len(positive), len(negative)
    return float((rankdata(np.concatenate([positive, negative]))[:n].sum() - n * (n + 1) / 2) / (n * m))


@pytest.mark.parametrize("body", ["chest", "abdomen"])
def test_a_case_is_a_pure_function_of_its_arguments(body: str) -> None:
    first, again, other = (phantom_case(index, seed=5, shape=COARSE, body=body) for index in (1, 1, 2))
    assert first.modalities == BODIES[body].modalities
    for name in first.modalities:
        np.testing.assert_array_equal(first.images[name].voxels, again.images[name].voxels)
        assert (first.images[name].voxels != other.images[name].voxels).any()
    np.testing.assert_array_equal(first.labels.voxels, again.labels.voxels)
    assert (first.labels.voxels != other.labels.voxels).any()


@pytest.mark.parametrize("body", ["chest", "abdomen"])
def test_numbers_grid_and_convention_are_as_promised(body: str) -> None:
    case = phantom_case(3, seed=1, shape=(33, 40, 17), body=body)
    assert case.convention == BODIES[body].convention == body
    conventions[body].check(case.labels.voxels)
    pixel = 400 / 33
    np.testing.assert_allclose(case.grid.spacing_mm, (pixel, pixel, {"chest": 200, "abdomen": 220}[body] / 17))
    np.testing.assert_allclose(np.sign(case.grid.native.affine.diagonal()), (-1, -1, 1, 1))
    for name, volume in case.images.items():
        voxels = volume.voxels
        np.testing.assert_array_equal(voxels, np.rint(voxels))
        assert voxels.min() >= -1024
        assert voxels.max() < np.iinfo(np.int16).max
        assert name == "ct" or voxels.min() >= 1
    assert brain_mask({name: volume.voxels for name, volume in case.images.items()}).all(), "nothing has a zero background"


def test_the_same_chest_at_another_size() -> None:
    coarse, fine = (chest_patient(1, seed=0, shape=shape) for shape in ((48, 40, 20), (80, 66, 36)))
    for tissues in (("lung",), ("tumour", "necrosis"), ("liver",), ("heart",)):
        small, large = (
            np.sum([patient.shares[name].sum() for name in tissues]) * patient.case.grid.voxel_volume_ml
            for patient in (coarse, fine)
        )
        assert small == pytest.approx(large, rel=0.06), tissues


def test_shares_of_all_tissues_fill_every_voxel(chests: list[TrunkPatient], abdomens: list[TrunkPatient]) -> None:
    for patient in (*chests, *abdomens):
        np.testing.assert_allclose(np.sum(list(patient.shares.values()), axis=0), 1, atol=1e-4)
        assert min(share.min() for share in patient.shares.values()) >= -1e-5


def test_a_chest_lies_in_the_grid_as_the_axes_say(chests: list[TrunkPatient]) -> None:
    """Axes run left -> right, posterior -> anterior, inferior -> superior: liver right, heart left, spine behind."""
    for patient in chests:
        cord, heart, liver, lung = (middle(patient, name) for name in ("cord", "heart", "liver", "lung"))
        assert liver[0] > cord[0] + 0.05
        assert heart[0] < cord[0] - 0.01
        assert middle(patient, "spleen")[0] < cord[0] - 0.15
        assert cord[1] < 0.35 < heart[1]
        assert liver[2] < heart[2] < 0.6
        assert liver[2] < lung[2]
        assert middle(patient, "gas")[2] > liver[2]


def test_hounsfield_units_are_those_of_tissues(chests: list[TrunkPatient]) -> None:
    for patient in chests:
        assert np.median(pure(patient, "ct", "lung")) < -750
        assert (pure(patient, "ct", "lung") < -600).mean() > 0.97
        assert -115 < np.median(pure(patient, "ct", "fat")) < -85
        for name in ("muscle", "heart", "blood", "liver", "tumour"):
            values = pure(patient, "ct", name, 0.95)
            assert values.size < 5 or 20 < np.median(values) < 75, name
        bone = patient.case.images["ct"].voxels[patient.shares["bone"] + patient.shares["marrow"] > 0.95]
        assert bone.size > 5
        assert np.percentile(bone, 20) > 200
        outside = pure(patient, "ct", "air", 0.999)
        assert ((outside >= -1024) & (outside <= -995)).mean() > 0.99
        assert outside.size > 0.1 * patient.shares["air"].size


def test_lungs_are_dark_in_both_and_mr_has_noise_outside(chests: list[TrunkPatient]) -> None:
    for patient in chests:
        muscle = np.median(pure(patient, "mr", "muscle"))
        assert np.median(pure(patient, "mr", "lung")) < 0.45 * muscle < np.median(pure(patient, "mr", "fat"))
        outside = pure(patient, "mr", "air", 0.999)
        assert 0 < np.median(outside) < 0.35 * muscle
        assert outside.std() > 0


def test_every_chest_has_its_tumour_inside_the_body(chests: list[TrunkPatient]) -> None:
    for patient in chests:
        there = patient.case.labels.voxels == 1
        assert there.any()
        assert patient.shares["air"][there].max() < 0.01
        touched = np.sum([patient.shares[name] for name in ("tumour", "necrosis")], axis=0)
        assert touched[there].min() >= min(0.5, touched.max()) - 1e-6


def test_sizes_and_seats_of_tumours_are_as_stated() -> None:
    """Draws alone, no images: about half lie against the mediastinum or the wall, 10 to 60 mm, a second one now and then."""
    from modistill.phantom.chest import draw_chest

    chest = replace(draw_chest(np.random.default_rng(0)), vessels=())
    drawn = [draw_lung_tumour(np.random.default_rng(seed), chest) for seed in range(20)]
    masses = [tumour.masses[0] for tumour in drawn]
    attached = sum(mass.seat != "lung" for mass in masses) / len(masses)
    assert attached == pytest.approx(1 - SEATS["lung"], abs=0.3)
    assert all(10 <= 2 * mass.radius <= 60 for mass in masses)
    assert np.median([2 * mass.radius for mass in masses]) == pytest.approx(30, abs=8)
    assert 1 <= sum(len(tumour.masses) == 2 for tumour in drawn) <= 10
    for mass in masses:
        x, y, z = (np.array([c], dtype=np.float32) for c in mass.centre)
        assert chest.lung(x, y, z)[0] > 0
        organs = chest.mediastinum(x, y, z)
        wall, middle = chest.trunk.cage(x, y, z)[0], -chest.coat(x, y, z, organs)[0]
        assert mass.seat != "wall" or wall < 1.2 * mass.radius
        assert mass.seat != "mediastinum" or middle < 1.2 * mass.radius


def near_tumour(patient: TrunkPatient) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of tumour alone, and of soft tissue other than fat within 15 mm of it."""
    labels = patient.case.labels.voxels
    tumour = patient.shares["tumour"] + patient.shares["necrosis"] > 0.85
    near = distance_transform_edt(labels == 0, sampling=patient.case.grid.spacing_mm) <= 15
    soft = np.sum([patient.shares[name] for name in SOFT], axis=0) > 0.85
    return tumour, soft & near & (labels == 0)


def test_mr_shows_a_tumour_against_soft_tissue_and_ct_hardly(chests: list[TrunkPatient]) -> None:
    found: dict[str, list[float]] = {"ct": [], "mr": []}
    for patient in chests:
        tumour, soft = near_tumour(patient)
        if tumour.sum() < 5 or soft.sum() < 10:
            continue
        for modality, areas in found.items():
            voxels = patient.case.images[modality].voxels
            areas.append(auc(voxels[tumour], voxels[soft]))
    assert len(found["mr"]) >= 3
    assert 0.2 < np.mean(found["ct"]) < 0.65
    assert np.mean(found["mr"]) > 0.8
    assert np.mean(np.maximum(found["ct"], 1 - np.array(found["ct"]))) < np.mean(found["mr"]) - 0.1


def test_tumours_are_as_bright_against_muscle_as_published(chests: list[TrunkPatient]) -> None:
    """Usuda et al. 2021: 2.14 ± 0.63 over 52 lung cancers."""
    ratios = []
    for patient in chests:
        tumour, _ = near_tumour(patient)
        if tumour.sum() >= 5:
            image = patient.case.images["mr"].voxels
            ratios.append(np.median(image[tumour]) / np.median(pure(patient, "mr", "muscle")))
    assert np.mean(ratios) == pytest.approx(2.14, abs=0.5)
    assert 1.0 < min(ratios) < max(ratios) < 3.6


def test_an_abdomen_lies_in_the_grid_as_the_axes_say(abdomens: list[TrunkPatient]) -> None:
    for patient in abdomens:
        labels, cord = patient.case.labels.voxels, middle(patient, "cord")
        places = {value: np.argwhere(labels == value).mean(axis=0) / (np.array(labels.shape) - 1) for value in (1, 2, 3, 4)}
        liver, right, left, spleen = places.values()
        assert right[0] > cord[0] + 0.08
        assert liver[0] > cord[0] + 0.05
        assert spleen[0] < left[0] < cord[0] - 0.08
        assert cord[1] < min(right[1], left[1])
        assert max(right[1], left[1]) < 0.5
        assert right[2] < left[2] < liver[2] + 0.1, "the right kidney lies lower"
        assert patient.shares["air"][labels > 0].max() < 0.01


def test_organ_volumes_are_those_of_adults(abdomens: list[TrunkPatient]) -> None:
    limits = {1: (800, 2300), 2: (60, 260), 3: (60, 260), 4: (60, 450)}
    for patient in abdomens:
        for value, (low, high) in limits.items():
            ml = (patient.case.labels.voxels == value).sum() * patient.case.grid.voxel_volume_ml
            assert low < ml < high, (patient.case.id, value, ml)


def told_by(classes: np.ndarray, *images: np.ndarray) -> float:
    """Share of voxels told right by the grey values alone, classes weighed alike: the best that histograms of 16 bins allow."""
    bins = np.zeros(classes.shape, dtype=int)
    for values in images:
        bins = 16 * bins + np.searchsorted(np.quantile(values, np.linspace(0, 1, 17)[1:-1]), values)
    masks = [classes == one for one in np.unique(classes)]
    histograms = [np.bincount(bins[mask], minlength=bins.max() + 1) / mask.sum() for mask in masks]
    return float(np.max(histograms, axis=0).sum() / len(histograms))


def test_t1_and_t2_are_equal_teachers_and_neither_is_enough(abdomens: list[TrunkPatient]) -> None:
    """Liver, kidneys, spleen, and the rest of the body; chance is a quarter."""
    told = []
    for patient in abdomens:
        labels, body = patient.case.labels.voxels, patient.shares["air"] < 0.01
        classes = np.array([0, 1, 2, 2, 3])[labels[body]]
        t1, t2 = (image.voxels[body] for image in patient.case.images.values())
        told.append((told_by(classes, t1), told_by(classes, t2), told_by(classes, t1, t2)))
        liver, spleen = ([np.median(image[classes == one]) for image in (t1, t2)] for one in (1, 3))
        assert liver[0] > 1.2 * spleen[0]
        assert spleen[1] > 1.3 * liver[1]
    t1, t2, both = np.mean(told, axis=0)
    assert min(t1, t2) > 0.4
    assert max(t1, t2) < 0.8
    assert abs(t1 - t2) < 0.2
    assert both > max(t1, t2) + 0.05


@pytest.mark.parametrize("body", ["chest", "abdomen"])
@pytest.mark.parametrize("shape", [(8, 64, 64), (64, 64, 1), (0, 64, 64)])
def test_a_grid_too_small_is_refused(body: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(RecipeError, match=rf"too small for an? {body} \(give three sizes of at least 16"):
        phantom_case(0, seed=0, shape=shape, body=body)


def test_bad_numbers_and_bodies_are_refused() -> None:
    with pytest.raises(RecipeError, match="must not be negative"):
        chest_patient(-1, seed=0, shape=COARSE)
    with pytest.raises(RecipeError, match="must not be negative"):
        abdomen_patient(0, seed=-1, shape=COARSE)
    with pytest.raises(RecipeError, match=r"no body leg \(there are brain, chest, abdomen\)"):
        phantom_case(0, seed=0, shape=COARSE, body="leg")


def test_a_grid_just_holds_the_body() -> None:
    """The finer of the two axes in the plane has room to spare; slices follow by themselves."""
    assert spacing_mm((256, 256, 48), "chest") == pytest.approx((400 / 256, 400 / 256, 200 / 48))
    assert spacing_mm((400, 100, 22), "abdomen") == pytest.approx((3.0, 3.0, 10.0))
