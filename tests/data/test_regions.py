"""Regions: unions in, the same labels out, whatever the unions are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modistill.data.naming import conventions
from modistill.data.regions import Regions
from modistill.errors import LabelError

BRATS = Regions({"WT": {1, 2, 4}, "TC": {1, 4}, "ET": {4}})
unions = st.dictionaries(st.text("ABCDEF", min_size=1, max_size=2), st.frozensets(st.integers(1, 6), min_size=1), min_size=1)
maps = st.lists(st.integers(0, 6), min_size=24, max_size=24).map(lambda values: np.array(values).reshape(2, 3, 4))


def patterns(regions):
    return {value: tuple(value in values for values in regions.values()) for value in range(7)}


@given(unions, maps)
def test_encoding_is_membership(sets, labels):
    regions = Regions(sets)
    encoded = regions.encode(labels)
    assert encoded.shape == (len(sets), 2, 3, 4)
    for region, values in zip(encoded, sets.values(), strict=True):
        np.testing.assert_array_equal(region, [[[value in values for value in row] for row in plane] for plane in labels])


@given(unions, maps)
def test_decoding_inverts_encoding_where_the_regions_tell_the_labels_apart(sets, labels):
    regions = Regions(sets)
    known = patterns(regions)
    decoded = regions.decode(regions.encode(labels))
    for before, after in zip(labels.ravel(), decoded.ravel(), strict=True):
        assert known[int(before)] == known[int(after)]
        if list(known.values()).count(known[int(before)]) == 1:
            assert before == after


@given(unions, st.data())
def test_any_binary_maps_decode_to_a_label_or_background(sets, data):
    regions = Regions(sets)
    size = len(sets) * 8
    bits = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(-1, 2, 2, 2)
    decoded = regions.decode(bits)
    np.testing.assert_array_equal(decoded == 0, ~bits.any(axis=0))
    assert set(np.unique(decoded)) <= {0, *regions.values_used}


@pytest.mark.parametrize("convention", conventions.values(), ids=conventions)
def test_regions_of_every_convention_tell_its_labels_apart(convention):
    named = ("NCR", "ED", "ET") if "NCR" in convention.values else tuple(convention.values)  # others of BraTS lie outside all
    labels = np.array([0, *(convention.values[name] for name in named)]).reshape(1, 1, -1)
    np.testing.assert_array_equal(convention.regions.decode(convention.regions.encode(labels)), labels)


def test_impossible_patterns_take_the_innermost_region():
    only_et, tc_without_wt = [[0], [0], [1]], [[0], [1], [0]]
    assert BRATS.decode(np.array(only_et)).tolist() == [4]
    assert BRATS.decode(np.array(tc_without_wt)).tolist() == [1]


@pytest.mark.parametrize("bad", [{}, {"A": set()}, {"A": {0, 1}}, {"A": {-1}}])
def test_regions_that_are_none(bad):
    with pytest.raises(LabelError):
        Regions(bad)


def test_mapping():
    assert list(BRATS) == ["WT", "TC", "ET"]
    assert BRATS["TC"] == {1, 4}
    assert BRATS.values_used == (1, 2, 4)
    assert repr(BRATS) == "Regions({'WT': {1, 2, 4}, 'TC': {1, 4}, 'ET': {4}})"
