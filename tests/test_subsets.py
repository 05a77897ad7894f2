from __future__ import annotations

import torch

from modistill.subsets import all_subsets, draw_subset, only_present


def test_all_subsets_of_four() -> None:
    subsets = all_subsets(("flair", "t1ce", "t1", "t2"))
    assert len(set(subsets)) == len(subsets) == 15
    assert subsets[0] == ("flair",)
    assert subsets[-1] == ("flair", "t1ce", "t1", "t2")


def test_a_drawn_subset_is_never_empty_and_never_more_than_there_is() -> None:
    torch.manual_seed(0)
    presence = torch.tensor([[True, False, True, True], [False, True, False, False]]).repeat(500, 1)
    drawn = draw_subset(presence)
    assert drawn.any(1).all()
    assert not (drawn & ~presence).any()


def test_how_many_are_drawn_is_uniform_then_which() -> None:
    torch.manual_seed(0)
    drawn = draw_subset(torch.ones(40_000, 4, dtype=torch.bool))
    counts = drawn.sum(1).bincount(minlength=5) / len(drawn)
    torch.testing.assert_close(counts, torch.tensor([0, 0.25, 0.25, 0.25, 0.25]), atol=0.01, rtol=0)
    first_alone = (drawn == torch.tensor([True, False, False, False])).all(1).float().mean()
    assert abs(first_alone - 1 / 16) < 0.01


def test_with_a_probability_the_others_keep_all_they_have() -> None:
    torch.manual_seed(0)
    presence = torch.tensor([[True, True, True, False]]).repeat(40_000, 1)
    whole = (draw_subset(presence, 0.6) == presence).all(1).float().mean()
    assert abs(whole - (0.4 + 0.6 / 3)) < 0.01  # a drawn subset of three is the full one in a third of the draws
    assert torch.equal(draw_subset(presence, 0.0), presence)


def test_only_present_overwrites_even_nan() -> None:
    images = torch.tensor([[[1.0], [torch.nan]]])
    assert only_present(images, torch.tensor([[True, False]])).tolist() == [[[1.0], [0.0]]]
