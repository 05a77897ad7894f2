"""Names of sequences and meanings of label numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modistill.data.naming import conventions, count_labels, guess_convention, known_modality, modality_name
from modistill.errors import LabelError

ALIASES = {
    "t1": "t1 T1 t1n T1w T1-pre",
    "t1ce": "t1ce T1c t1gd T1_Gd t1post T1km ceT1 T1wCE",
    "t2": "t2 T2w",
    "flair": "flair FLAIR t2f T2-FLAIR t2_flair FLAIRw",
    "ct": "CT",
    "mr": "MR mri",
}


@pytest.mark.parametrize(("name", "written"), [(name, word) for name, words in ALIASES.items() for word in words.split()])
def test_aliases(name, written):
    assert modality_name(written) == known_modality(written) == name


def test_names_that_nobody_knows_stay():
    assert modality_name("ADC") == "adc"
    assert known_modality("adc") is None


@given(st.lists(st.integers(-300, 70000) | st.integers(0, 5), max_size=50), st.sampled_from(["int32", "int64", "float32"]))
def test_counting_agrees_with_numpy(values, dtype):
    labels = np.array(values, dtype=dtype)
    found, counts = np.unique(labels, return_counts=True)
    assert count_labels(labels) == dict(zip(found.tolist(), counts.tolist(), strict=True))
    assert list(count_labels(labels)) == sorted(set(values))


@pytest.mark.parametrize("convention", conventions.values(), ids=conventions)
def test_classes_and_back(convention):
    labels = np.array([0, *convention.values.values(), 0]).reshape(1, 1, -1)
    classes = convention.to_classes(labels)
    assert classes.ravel().tolist() == [0, *range(1, len(convention.values) + 1), 0]
    np.testing.assert_array_equal(convention.from_classes(classes), labels)
    np.testing.assert_array_equal(convention.class_regions.encode(classes), convention.regions.encode(labels))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0, 1, 3, 3], r"label values outside brats2021: 3 \(2 voxels\) \(these values fit brats2023"),
        ([0, -1, 255, 1], r"-1 \(1 voxels\), 255 \(1 voxels\) \(check the label map\)"),
        ([0, 0.5, 1, 2], "1 voxels hold fractions such as 0.5"),
        ([0, np.nan, 1, 2], "NaN or infinite"),
        (list(range(100)), "and 91 values more .this looks like an image"),
    ],
)
def test_foreign_values_are_listed_with_counts(values, reason):
    with pytest.raises(LabelError, match=reason):
        conventions["brats2021"].check(np.array(values))


@pytest.mark.parametrize(
    ("values", "hint", "name"),
    [
        ({0, 1, 2, 4}, None, "brats2021"),
        ({0, 4}, None, "brats2021"),
        ({0, 1, 2, 3, 4}, None, "brats2024"),
        ({0, 1, 2, 3}, "brats2023", "brats2023"),
        ({0, 1, 2, 3}, "msd_task01", "msd_task01"),
        ({0, 1, 2, 4}, "brats2023", "brats2021"),
        ({0}, "brats2021", "brats2021"),
        ({0, 1}, "chest", "chest"),
        ({0, 1, 2, 3, 4}, "abdomen", "abdomen"),
        ({0, 1, 2, 4}, "chest", "brats2021"),
        ({0, 63, 126, 189, 252}, None, "chaos"),
        ({0, 63}, None, "chaos"),
    ],
)
def test_conventions_are_guessed_where_the_values_decide(values, hint, name):
    assert guess_convention(values, hint).name == name


def test_organs_are_regions_and_numbered_as_chaos_numbers_them():
    chaos, abdomen = conventions["chaos"], conventions["abdomen"]
    assert dict(chaos.values) == {"LIVER": 63, "RIGHT_KIDNEY": 126, "LEFT_KIDNEY": 189, "SPLEEN": 252}
    assert dict(chaos.class_regions) == dict(abdomen.regions) == {name: {index + 1} for index, name in enumerate(chaos.values)}
    assert dict(conventions["chest"].regions) == {"TUMOUR": {1}}
    labels = np.array([[[0, 252, 126, 63, 189]]])
    np.testing.assert_array_equal(abdomen.from_classes(chaos.to_classes(labels)), [[[0, 4, 2, 1, 3]]])


def test_what_has_everybodys_numbers_is_named_never_guessed():
    assert [name for name, one in conventions.items() if not one.told_by_values] == ["chest", "abdomen"]
    with pytest.raises(LabelError, match=r"1 fit .*chest.* \(say which with --labels\)"):
        guess_convention({0, 1})


@pytest.mark.parametrize("values", [{1, 2, 3}, {1, 2}, set(), {1, 2, 9}])
def test_ambiguous_and_foreign_values_are_refused(values):
    with pytest.raises(LabelError, match="fit"):
        guess_convention(values)
