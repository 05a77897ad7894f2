from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modistill.data.splits import Split, load_shares, make_split, patient_of, tumour_strata
from modistill.errors import CaseError, RecipeError

THIRDS = {"train": 0.7, "validation": 0.1, "test": 0.2}
cohorts = st.integers(1, 60).map(lambda n: [f"case{i:03d}" for i in range(n)])


@given(cohorts, st.integers(0, 5), st.randoms())
def test_every_case_is_in_one_part_and_the_order_does_not_matter(cases, seed, random):
    split = make_split(cases, THIRDS, seed=seed)
    assert sorted(case for ids in split.parts.values() for case in ids) == cases
    shuffled = list(cases)
    random.shuffle(shuffled)
    assert make_split(shuffled, THIRDS, seed=seed).digest == split.digest
    for part, share in THIRDS.items():
        assert abs(len(split[part]) - share * len(cases)) <= 1


def test_published_counts_come_out_exactly_and_grades_in_proportion():
    # BraTS 2019: 335 cases, 259 HGG and 76 LGG, split 200 / 66 / 69
    grades = {f"c{i}": "HGG" if i < 259 else "LGG" for i in range(335)}
    split = make_split(list(grades), {"train": 200, "validation": 66, "test": 69}, seed=3, strata=grades)
    assert [len(split[part]) for part in ("train", "validation", "test")] == [200, 66, 69]
    for part in split.parts:
        high = sum(grades[case] == "HGG" for case in split[part])
        assert abs(high - len(split[part]) * 259 / 335) <= 1.0


def test_counts_may_leave_cases_over_from_all_strata():
    strata = {f"c{i:02d}": "ab"[i % 2] for i in range(40)}
    split = make_split(list(strata), {"train": 10, "test": 10}, strata=strata)
    assert len(split["train"]) == len(split["test"]) == 10
    assert sum(strata[case] == "a" for case in split["train"]) == 5


def test_seeds_differ():
    cases = [f"c{i}" for i in range(30)]
    assert make_split(cases, THIRDS, seed=0).digest != make_split(cases, THIRDS, seed=1).digest


@given(st.lists(st.integers(1, 4), min_size=2, max_size=20), st.integers(0, 3))
def test_examinations_of_one_patient_stay_together(visits, seed):
    cases = [f"BraTS-GLI-{patient:05d}-{visit:03d}" for patient, n in enumerate(visits) for visit in range(n)]
    split = make_split(cases, THIRDS, seed=seed)
    parts = {}
    for part, ids in split.parts.items():
        for case in ids:
            assert parts.setdefault(patient_of(case), part) == part
    assert sum(map(len, split.parts.values())) == len(cases)


def test_a_list_fixes_its_part_and_brings_the_patient_along():
    cases = ["p-00001-000", "p-00001-001", *(f"q{i}" for i in range(8))]
    split = make_split(cases, {"test": ["p-00001-000"], "train": 0.75, "validation": 0.25})
    assert split["test"] == ("p-00001-000", "p-00001-001")
    assert (len(split["train"]), len(split["validation"])) == (6, 2)


def test_with_a_test_list_only_the_rest_trains_and_with_a_train_list_the_rest_is_left_out():
    assert make_split("abcd", {"test": ["a", "b"]})["train"] == ("c", "d")
    assert sum(map(len, make_split("abcd", {"test": ["a"], "train": ["b"]}).parts.values())) == 2


@pytest.mark.parametrize(
    ("shares", "error", "words"),
    [
        ({"train": ["a"], "test": ["a"]}, CaseError, "in train and in test"),
        ({"train": ["x-00001-000"], "test": ["x-00001-001"]}, CaseError, "patient x-00001"),
        ({"test": ["case_00"]}, RecipeError, "did you mean case_001?"),
        ({"train": 9}, RecipeError, "counts ask for 9 cases, 5 are there"),
        ({"train": 1.5}, RecipeError, "fractions lie in 0..1"),
        ({"train": "a"}, RecipeError, "give a list of ids"),
        ({"train": 0.0}, RecipeError, "all fractions are 0"),
    ],
)
def test_what_makes_no_sense_is_refused(shares, error, words):
    with pytest.raises(error, match=words):
        make_split(["a", "b", "case_001", "x-00001-000", "x-00001-001"], shares)


def test_the_written_split_is_the_same_and_a_changed_one_is_noticed():
    split = make_split([f"c{i}" for i in range(9)], THIRDS, seed=2)
    values = json.loads(json.dumps(split.to_json()))
    assert Split.from_json(values).digest == split.digest
    values["parts"]["train"].append("c99")
    with pytest.raises(RecipeError, match="changed by hand"):
        Split.from_json(values)


def test_strata_tell_grade_classes_and_size():
    volumes = {"a": {"ED": 1.0, "ET": 0.0}, "b": {"ED": 10.0, "ET": 1.0}, "c": {"ED": 90.0, "ET": 9.0}}
    assert tumour_strata(volumes, {"a": "LGG"}) == {"a": "LGG/ED/0", "b": "any/ED+ET/1", "c": "any/ED+ET/2"}
    assert tumour_strata({}) == {}


def test_split_files(tmp_path: Path):
    path = tmp_path / "split.yaml"
    path.write_text("test: [a, 7]\ntrain: 0.9\nvalidation: 0.1\n")
    assert load_shares(path) == {"test": ["a", "7"], "train": 0.9, "validation": 0.1}
    path.write_text(json.dumps(make_split("abc", {"test": ["a"], "train": ["b", "c"]}).to_json()))
    assert load_shares(path) == {"test": ["a"], "train": ["b", "c"]}
    path.write_text("- a\n")
    with pytest.raises(RecipeError, match="not a split file"):
        load_shares(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_shares(tmp_path / "absent")
