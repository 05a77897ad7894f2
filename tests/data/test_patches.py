from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modistill.data.patches import choose_start, within

sizes = st.tuples(*[st.integers(1, 12)] * 3)


@given(sizes, sizes, st.integers(0, 99), st.data())
def test_a_patch_holds_the_voxel_and_lies_inside_or_around_the_case(shape, size, seed, data):
    voxel = data.draw(st.none() | st.tuples(*[st.integers(0, n - 1) for n in shape]))
    start = choose_start(shape, size, np.random.default_rng(seed), voxel)
    for axis in range(3):
        first, last = start[axis], start[axis] + size[axis]
        if shape[axis] >= size[axis]:
            assert 0 <= first <= last <= shape[axis]
        else:
            assert first == -((size[axis] - shape[axis]) // 2)
        if voxel is not None:
            assert first <= voxel[axis] < last


def test_every_position_is_drawn_alike():
    rng = np.random.default_rng(0)
    drawn = [choose_start((7, 5, 5), (4, 5, 5), rng)[0] for _ in range(4000)]
    assert np.abs(np.bincount(drawn) / 4000 - 0.25).max() < 0.03


@given(st.tuples(*[st.integers(-15, 15)] * 3), sizes, sizes)
def test_within_is_the_window_onto_a_zero_padded_array(start, size, shape):
    array = np.random.default_rng(0).integers(1, 99, shape)
    slices, padding = within(start, size, shape)
    patch = np.pad(array[slices], padding)
    wide = np.pad(array, 30)
    expected = wide[tuple(slice(30 + first, 30 + first + p) for first, p in zip(start, size, strict=True))]
    np.testing.assert_array_equal(patch, expected)
