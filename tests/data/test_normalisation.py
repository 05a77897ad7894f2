"""Numbers worked out by hand, and what a histogram standardisation must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modistill.data.normalisation import landmarks, normalise, parse, spell, standard_landmarks
from modistill.errors import CaseError, RecipeError


def image(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1)


EVERYWHERE = np.ones((5, 1, 1), bool)


def test_a_window_by_hand() -> None:
    found, _ = normalise(image(-2000, -1000, -250, 500, 3000), EVERYWHERE, (-1000, 500))
    assert found.ravel().tolist() == [0, 0, 0.5, 1, 1]


def test_outside_the_mask_is_zero_and_counts_for_nothing() -> None:
    inside = np.array([1, 1, 1, 1, 0], bool).reshape(5, 1, 1)
    for how in ("zscore", "hadnet", "percentiles", (0.0, 10.0)):
        one, other = (normalise(image(1, 2, 3, 7, x), inside, how)[0] for x in (1.5, 6.5))
        assert np.array_equal(one, other)
        assert one[4] == 0


def test_percentiles_by_hand() -> None:
    found, _ = normalise(np.arange(201, dtype=np.float32).reshape(-1, 1, 1), np.ones((201, 1, 1), bool), "percentiles")
    # The 0.5th and the 99.5th of 0 ... 200 are 1 and 199.
    assert found.ravel()[[0, 1, 100, 199, 200]].tolist() == [0, 0, 0.5, 1, 1]


def test_landmarks_by_hand() -> None:
    # The mean of 0 and 0 ... 200 in equal parts is 50; 51 ... 200 are brighter.
    values = np.concatenate([np.zeros(201), np.arange(201)])
    found = landmarks(values)
    assert found[0] == 0
    assert found[1:3] == pytest.approx((51 + 1.49, 51 + 14.9))
    assert found[-1] == pytest.approx(51 + 0.99 * 149)
    assert len(found) == 12


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), gain=st.floats(0.1, 50), offset=st.floats(-100, 100))
def test_gain_and_offset_of_the_scanner_cancel(seed: int, gain: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    tissue = rng.gamma(3.0, 20.0, (12, 12, 12)).astype(np.float32)
    standard = standard_landmarks([landmarks(rng.gamma(2.5, 30.0, 4000)) for _ in range(4)])
    inside = np.ones(tissue.shape, bool)
    one, other = (normalise(x, inside, "landmarks", standard=standard)[0] for x in (tissue, tissue * gain + offset))
    np.testing.assert_allclose(one, other, atol=2e-3)
    assert one.min() == 0
    assert one.max() <= 1


def test_an_image_whose_landmarks_are_the_standard_is_only_scaled() -> None:
    tissue = np.random.default_rng(0).gamma(3.0, 20.0, (20, 20, 20)).astype(np.float32)
    own = landmarks(tissue)
    found, _ = normalise(tissue, np.ones(tissue.shape, bool), "landmarks", standard=standard_landmarks([own]))
    np.testing.assert_allclose(found, ((tissue - own[0]) / (own[-1] - own[0])).clip(0, 1), atol=2e-5)


def test_equal_percentiles_are_no_obstacle() -> None:
    few = np.repeat([0.0, 1.0, 5.0], [50, 2, 48]).astype(np.float32).reshape(-1, 1, 1)
    found, _ = normalise(few, np.ones(few.shape, bool), "landmarks", standard=tuple(np.linspace(0, 1, 12)))
    assert np.isfinite(found).all()
    assert (np.diff(found.ravel()) >= 0).all()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(CaseError, match="p1: mr is constant inside the brain"):
        normalise(image(3, 3, 3, 3, 3), EVERYWHERE, "zscore", modality="mr", case="p1")
    with pytest.raises(RecipeError, match="no landmarks of mr are known"):
        normalise(image(1, 2, 3, 4, 5), EVERYWHERE, "landmarks", modality="mr")
    with pytest.raises(RecipeError, match=r"normalisation 'ct=a:b' cannot be understood"):
        parse("ct=a:b")


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.dictionaries(
        st.sampled_from(["ct", "mr", "t1"]),
        st.sampled_from(["zscore", "landmarks"]) | st.tuples(FINITE, FINITE),
        min_size=1,
    )
    | st.tuples(FINITE, FINITE)
)
def test_what_is_spelt_is_parsed(how) -> None:
    assert parse(spell(how)) == how


def test_no_digit_is_lost() -> None:
    assert spell({"ct": (-1024.55, 1500.123), "mr": (0, 1136257)}) == "ct=-1024.55:1500.123,mr=0:1136257"
    assert spell((np.float32(-1000), np.float64(0.1))) == "-1000:0.1"


def test_modalities_go_by_any_of_their_names() -> None:
    assert parse("CT=-1000:500, MRI = landmarks,T1-Gd=zscore,PET=percentiles") == {
        "ct": (-1000.0, 500.0),
        "mr": "landmarks",
        "t1ce": "zscore",
        "pet": "percentiles",
    }
    with pytest.raises(RecipeError, match=r"normalisation 'mr=zscore,MRI=landmarks' names mr twice \(give each modality one"):
        parse("mr=zscore,MRI=landmarks")
