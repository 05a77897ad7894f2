"""Lungs in a chest made of boxes, whose slices and voxels are counted by hand; and cases cropped to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from command_line import run_main
from modistill.data.case import Case
from modistill.data.lungs import body_mask, lung_mask, lung_slices
from modistill.data.nifti import write_volume
from modistill.data.preprocessing import Preprocessing
from modistill.data.store import PreparedCohort
from modistill.data.volume import Volume
from modistill.errors import RecipeError
from modistill.phantom.patient import phantom_case

SPACING = (5.0, 5.0, 10.0)  # 4 voxels to the millilitre
SHAPE = (60, 40, 24)
LUNGS = np.s_[8:24, 8:32, 8:16], np.s_[36:52, 8:32, 10:18]


def chest() -> np.ndarray:
    """Slices 8 to 17 show lung. Around the body is air, and behind it a hollow table with 600 ml of foam."""
    ct = np.full(SHAPE, -1000.0, np.float32)
    ct[3:57, 3:34] = 40
    ct[3:57, 35:39] = 200
    ct[4:56, 36:38] = -900
    for lung in LUNGS:
        ct[lung] = -800
    return ct


def found(ct: np.ndarray, **how: float) -> list[int]:
    return np.flatnonzero(lung_slices(lung_mask(ct, SPACING, **how))).tolist()


def test_the_two_largest_components_inside_the_body() -> None:
    expected = np.zeros(SHAPE, bool)
    for lung in LUNGS:
        expected[lung] = True
    ct = chest()
    np.testing.assert_array_equal(lung_mask(ct, SPACING), expected)
    ct[27:33, 8:14, 0:5] = -900  # a third one, of gas in the gut: 45 ml
    np.testing.assert_array_equal(lung_mask(ct, SPACING), expected)
    ct[27:33, 8:14, 0:5] = 40
    ct[8:24, 8:32, 8:16][::2, ::2] = -299  # vessels
    expected[8:24, 8:32, 8:16][::2, ::2] = False
    np.testing.assert_array_equal(lung_mask(ct, SPACING), expected)


def test_lungs_that_are_joined_and_a_windpipe_that_leads_outside() -> None:
    ct = chest()
    ct[24:36, 18:22, 12:14] = -900  # bronchi
    ct[28:32, 18:22, 12:24] = -900  # the windpipe, to the end of the scan
    assert found(ct) == list(range(8, 24))
    ct[28:32, :22, 22:24] = -900  # and through an open mouth: slices 22 and 23 lose it, the lungs are not lost
    assert found(ct) == list(range(8, 22))


def test_gas_is_no_lung_and_neither_is_the_air_around() -> None:
    ct = chest()
    for lung in LUNGS:
        ct[lung] = 40
    assert found(ct) == []
    ct[27:33, 8:14, 0:5] = -900
    assert found(ct) == []
    assert found(ct, smallest_ml=45.0) == list(range(5))
    assert found(np.full(SHAPE, -1000.0)) == []
    assert found(np.full(SHAPE, 40.0)) == []


@pytest.mark.parametrize("axis", [0, 1])
def test_mirrored_patients_have_mirrored_lungs(axis: int) -> None:
    ct = chest()
    mirrored = lung_mask(np.flip(ct, axis), SPACING)
    np.testing.assert_array_equal(np.flip(mirrored, axis), lung_mask(ct, SPACING))


def test_a_phantom_has_lungs() -> None:
    case = phantom_case(0, seed=1, shape=(64, 64, 16), body="chest")
    ct = case.images["ct"]
    mask = lung_mask(ct.voxels, ct.spacing_mm)
    assert 1500 < mask.sum() * np.prod(ct.spacing_mm) / 1000 < 6000
    assert ct.voxels[mask].max() < -300


# ------------------------------------------------------------------ within the lungs


def patient(modality: str, voxels: np.ndarray, name: str = "p") -> Case:
    affine = np.diag([*SPACING, 1.0])
    labels = np.zeros(SHAPE, np.uint8)
    labels[20:26, 20:24, 10:13] = 1
    return Case(name, {modality: Volume(voxels, affine)}, Volume(labels, affine), "chest")


def how(**settings: object) -> Preprocessing:
    both = {"ct": (-1000, 500), "mr": "percentiles"}
    values = {"modalities": ("ct", "mr"), "available": ("ct",), "normalisation": both, "within": "lungs", **settings}
    return Preprocessing(**values)


def test_a_ct_is_cropped_to_the_slices_that_show_lung_and_comes_back() -> None:
    case, preprocessing = patient("ct", chest()), how()
    whole, cut = (preprocessing.apply(case) if within else how(within=None).apply(case) for within in (False, True))
    assert cut.geometry.box == ((0, 60), (0, 40), (8, 18))
    np.testing.assert_array_equal(cut.images, whole.images[..., 8:18])
    np.testing.assert_array_equal(cut.labels, whole.labels[..., 8:18])
    assert cut.notices == ()
    probabilities = np.stack([np.full((60, 40, 10), 0.25, np.float32), np.full((60, 40, 10), 0.75, np.float32)])
    restored = preprocessing.for_patients().restore(probabilities, cut.geometry, outside=(1, 0))
    tumour = np.flatnonzero((restored.argmax(0) == 1).any((0, 1)))
    assert tumour.tolist() == list(range(8, 18))
    assert preprocessing.for_patients().apply(Case("p", case.images)).geometry == cut.geometry


def test_patients_without_ct_or_without_lungs_are_kept_whole() -> None:
    mr = patient("mr", np.random.default_rng(0).uniform(1, 9, SHAPE).astype(np.float32))
    kept = how().for_subset(["mr"]).apply(mr)
    assert (kept.geometry.prepared_shape, kept.notices) == (SHAPE, ())
    thigh = chest()
    for lung in LUNGS:
        thigh[lung] = 40
    kept = how().apply(patient("ct", thigh))
    assert kept.geometry.prepared_shape == SHAPE
    assert kept.notices == ("no lungs found in ct: all slices are kept",)


def test_a_tumour_outside_the_crop_is_noticed() -> None:
    case = patient("ct", chest())
    case.labels.voxels[20, 20, :5] = 1
    assert how().apply(case).notices == ("5 labelled voxels lie outside the crop",)


def test_a_privileged_ct_has_no_say() -> None:
    mr = np.random.default_rng(0).uniform(1, 9, SHAPE).astype(np.float32)
    case = Case("p", {**patient("ct", chest()).images, **patient("mr", mr).images})
    assert how(available=("mr",)).apply(case).geometry.prepared_shape == SHAPE
    assert how(available=("ct", "mr")).apply(case).geometry.prepared_shape == (60, 40, 10)


def test_landmarks_are_of_what_is_kept() -> None:
    mr = np.random.default_rng(0).uniform(1, 9, SHAPE).astype(np.float32)
    case = Case("p", {**patient("ct", chest()).images, **patient("mr", mr).images})
    chosen = {"available": ("ct", "mr"), "normalisation": "landmarks"}
    alone = Case("p", {name: Volume(volume.voxels[..., 8:18], volume.affine) for name, volume in case.images.items()})
    assert how(**chosen).landmarks_of(case) == how(**chosen, within=None).landmarks_of(alone)


def test_prepare_keeps_the_choice_and_says_what_it_did(tmp_path: Path, capsys) -> None:
    for index, (modality, voxels) in enumerate(
        [("ct", chest()), ("ct", np.full(SHAPE, 40.0) + chest() % 7), ("mr", chest() + 1001)]
    ):
        case = patient(modality, voxels.astype(np.float32))
        write_volume(tmp_path / "raw" / f"P{index}" / f"P{index}_{modality}.nii.gz", case.images[modality], dtype=np.float32)
        write_volume(tmp_path / "raw" / f"P{index}" / f"P{index}_seg.nii.gz", case.labels, dtype=np.uint8)
    words = [tmp_path / "raw", "--available", "ct", "--labels", "chest", "--within", "lungs", "--fractions", 1, 0, 0]
    words += ["--normalisation", "ct=-1000:500,mr=percentiles", "--workers", 1]
    assert run_main("prepare", *words, "-o", tmp_path / "p") == 0
    cohort = PreparedCohort(tmp_path / "p")
    assert [cohort.entry(f"P{index}").shape[2] for index in range(3)] == [10, 24, 24]
    assert cohort.plan.preprocessing.within == "lungs"
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("no lungs found") == 1
    assert "notice: P1: no lungs found in ct: all slices are kept" in printed
    assert "within lungs" in printed
    assert run_main("prepare", *words, "--available", "mr", "-o", tmp_path / "q") == 2
    assert "--within lungs needs a ct, which no patient will have" in " ".join(capsys.readouterr().err.split())


def test_another_place_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"within is 'liver' \(lungs, or nothing\)"):
        how(within="liver")


def noisy_chest() -> tuple[np.ndarray, np.ndarray]:
    """A body with lungs as dark as the air, of which nothing is exactly zero; and where the body is."""
    body = np.zeros(SHAPE, bool)
    body[3:57, 3:34] = True
    mr = np.random.default_rng(0).rayleigh(0.02, SHAPE).astype(np.float32)
    mr[body] += 0.5
    mr[3:10, 3:34] += 0.4  # fat
    for lung in LUNGS:
        mr[lung] -= 0.5
    return mr, body


def test_noise_in_air_is_no_body_and_dark_lungs_are() -> None:
    mr, body = noisy_chest()
    assert (mr > mr.min()).mean() > 0.999  # so that "above the darkest" says nothing
    np.testing.assert_array_equal(body_mask(mr), body)
    mr[20:30, 36:39] = 0.5  # a marker beside the patient
    np.testing.assert_array_equal(body_mask(mr), body)
    np.testing.assert_array_equal(body_mask(mr * 1000 + 7), body)


def test_a_body_that_reaches_the_edge_of_the_image() -> None:
    mr, body = noisy_chest()
    np.testing.assert_array_equal(body_mask(mr[:30]), body[:30])
    np.testing.assert_array_equal(body_mask(mr[3:, :34]), body[3:, :34])
    assert not body_mask(np.full(SHAPE, 0.5)).any()


def test_the_body_of_a_phantom_is_the_same_in_both_modalities() -> None:
    case = phantom_case(0, body="chest", seed=3, shape=(64, 48, 16))
    ct, mr = (body_mask(case.images[name].voxels.clip(-1000, 500)) for name in ("ct", "mr"))
    assert 2 * (ct & mr).sum() > 0.98 * (ct.sum() + mr.sum())
    assert 0.25 < ct.mean() < 0.6
