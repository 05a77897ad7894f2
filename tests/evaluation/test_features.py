"""Silhouette by hand, a probe that may not know its patients, and maps that are the same every time."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from modistill.errors import CaseError, RecipeError
from modistill.evaluation.features import embed, require_scikit_learn, separation


def sample(patients: int = 6, each: int = 40) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(np.arange(each) < each // 2, patients), np.repeat([f"p{n}" for n in range(patients)], each)


def test_silhouette_by_hand() -> None:
    """Background at 0 and 1, tumour at 10 and 11: a = 1, b = 10.5 or 9.5; s = 1 - a / b. Scale does not matter."""
    found = separation(np.array([[0.0], [1], [10], [11]]), np.array([0, 0, 1, 1], bool), np.array(["p1"] * 4))
    assert found.silhouette == pytest.approx(1 - (1 / 10.5 + 1 / 9.5) / 2)
    assert (found.probe_auc, found.folds) == (None, 1)


def test_what_lies_apart_and_what_does_not() -> None:
    tumour, cases = sample()
    noise = np.random.default_rng(0).normal(size=(len(tumour), 60))
    nothing, apart = (separation(noise + shift * tumour[:, None], tumour, cases) for shift in (0, 4))
    assert abs(nothing.silhouette) < 0.02
    assert 0.4 < nothing.probe_auc < 0.6
    assert apart.silhouette > 0.4
    assert apart.probe_auc == 1
    assert apart.folds == 5


def test_the_probe_is_tried_on_patients_it_has_not_seen() -> None:
    """Each patient's tumour is told by a feature of its own: within patients perfect, across them worthless."""
    tumour, cases = sample()
    noise = np.random.default_rng(0).normal(size=(len(tumour), 6))
    own = np.unique(cases, return_inverse=True)[1]
    features = noise.copy()
    features[np.arange(len(own)), own] += 20 * tumour
    assert separation(features, tumour, cases).probe_auc < 0.65
    shared = noise.copy()
    shared[:, 0] += 20 * tumour
    assert separation(shared, tumour, cases).probe_auc == 1


def test_features_that_never_change_do_no_harm() -> None:
    tumour, cases = sample()
    features = np.random.default_rng(0).normal(size=(len(tumour), 3)) + tumour[:, None]
    dead = np.concatenate([features, np.zeros((len(tumour), 2))], axis=1)
    assert separation(dead, tumour, cases).probe_auc == pytest.approx(separation(features, tumour, cases).probe_auc)


def test_maps_keep_neighbours_and_are_the_same_every_time() -> None:
    tumour, _ = sample(3)
    features = np.random.default_rng(0).normal(size=(len(tumour), 70)) + 6 * tumour[:, None]
    first, again = (embed(features, perplexity=10, iterations=500) for _ in range(2))
    assert first.shape == (120, 2)
    assert np.array_equal(first, again)
    nearest = np.square(first[:, None] - first[None]).sum(axis=2) + 1e9 * np.eye(120)
    assert (tumour[nearest.argmin(axis=1)] == tumour).mean() > 0.95


def test_too_few_voxels() -> None:
    with pytest.raises(CaseError, match=r"60 voxels are too few for a perplexity of 60 \(give more cases\)"):
        embed(np.zeros((60, 3)))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    require_scikit_learn()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(RecipeError, match=r"scikit-learn is not installed \(pip install 'modistill\[analysis\]'\)"):
        require_scikit_learn()


def test_examinations_of_one_patient_share_a_fold() -> None:
    """Tumour is told by features of the patient alone, who comes twice: seen once, the other visit would be told perfectly."""
    tumour, cases = sample(patients=12)
    patient = np.unique(cases, return_inverse=True)[1]
    number = np.array([int(case[1:]) for case in cases]) // 2
    features = np.random.default_rng(0).normal(size=(len(cases), 6))
    features[np.arange(len(cases)), number] += 20 * tumour
    visits = np.array([f"p{n}_ses-{case[1:]}" for n, case in zip(number, cases, strict=True)])
    assert len(np.unique(patient)) == 12
    found = separation(features, tumour, visits)
    assert found.probe_auc < 0.65
    assert found.folds == 5
    assert separation(features, tumour, cases).probe_auc > 0.8
    assert separation(features[:80], tumour[:80], visits[:80]).probe_auc is None
