"""Cases dealt to the domains of an unpaired training, of which each shows one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modistill.data.loading import Loader, deal
from modistill.data.store import PreparedCohort
from modistill.errors import RecipeError
from modistill.methods.cyclegan import CycleGAN
from modistill.recipe import Recipe, Sampling
from modistill.runs import _loader
from tiny_cohort import ALL, prepare_folder, write_folder

EACH = tuple((name,) for name in ALL)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[dict[str, list[int]], int]:
    """Cases with the domains they fit, some of them none, and how many domains there are."""
    domains = draw(st.integers(1, 4))
    some = st.lists(st.integers(0, domains - 1), unique=True).map(sorted)
    cases = draw(st.lists(st.one_of(some, st.just(list(range(domains)))), max_size=9))
    return {f"case{index}": fits for index, fits in enumerate(cases)}, domains


@given(cohorts(), st.integers(0, 3))
def test_each_case_is_in_one_domain_that_it_fits(cohort: tuple[dict[str, list[int]], int], seed: int) -> None:
    fits, domains = cohort
    dealt = deal(fits, domains, seed)
    assert sorted(case for some in dealt for case in some) == sorted(case for case, some in fits.items() if some)
    assert all(domain in fits[case] for domain, some in enumerate(dealt) for case in some)
    assert dealt == deal(dict(reversed(fits.items())), domains, seed)  # whatever the order they come in


@given(st.integers(0, 40), st.integers(1, 5), st.integers(0, 9))
def test_complete_cases_are_dealt_in_turn(count: int, domains: int, seed: int) -> None:
    dealt = deal({f"case{index:02d}": list(range(domains)) for index in range(count)}, domains, seed)
    assert [len(some) for some in dealt] == [-(-(count - domain) // domains) for domain in range(domains)]


@settings(max_examples=200)
@given(cohorts().filter(lambda cohort: cohort[1] <= 2), st.integers(0, 3))
def test_of_two_domains_no_deal_is_more_even(cohort: tuple[dict[str, list[int]], int], seed: int) -> None:
    """All ways to deal are tried."""
    fits, domains = cohort
    choices = [some for some in fits.values() if some]
    best = min(np.ptp(np.bincount(way, minlength=domains)) for way in map(list, product(*choices)))
    assert np.ptp([len(some) for some in deal(fits, domains, seed)]) == best


def test_a_scarce_modality_is_not_left_without_cases() -> None:
    """Only `only` shows domain 1; the shuffle must not give it to another one first."""
    fits = {"only": [0, 1], **{f"case{index}": [0, 2] for index in range(4)}}
    assert all(deal(fits, 3, seed)[1] == ("only",) for seed in range(20))


def test_the_seed_decides() -> None:
    fits = {f"case{index:02d}": [0, 1, 2, 3] for index in range(20)}
    assert deal(fits, 4, 0) == deal(fits, 4, 0)
    assert len({str(deal(fits, 4, seed)) for seed in range(10)}) == 10


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    """Eight training cases of four sequences; two lack one, and one lacks three."""
    root = tmp_path_factory.mktemp("apart")
    write_folder(root / "raw", cases=9, shape=(12, 12, 14))
    for index, lacks in ((1, ["t1ce"]), (2, ["flair"]), (4, ["flair", "t1ce", "t1"])):
        for name in lacks:
            (root / "raw" / f"BraTS21_{index:03d}" / f"BraTS21_{index:03d}_{name}.nii.gz").unlink()
    return prepare_folder(root / "raw", root / "prepared", available=ALL).cohort


def loader(cohort: PreparedCohort, ids: list[str] | None = None, **how) -> Loader:
    how = {"domains": EACH, "apart": True, "patch_size": (8, 8), "dims": 2, "workers": 0, **how}
    return Loader(cohort, cohort.ids("train") if ids is None else ids, modalities=ALL, available=ALL, **how)


def shown(loader: Loader, epochs: int = 3, **part) -> dict[str, set[str]]:
    """Of each case the modalities that are seen of it; no other channel holds anything."""
    seen: dict[str, set[str]] = {}
    for epoch in range(epochs):
        for batch in loader.batches(epoch, **part):
            assert (batch.presence.sum(1) == 1).all()
            assert not batch.images[~batch.presence].any()
            assert batch.images[batch.presence].any()
            for case, there in zip(batch.cases, batch.presence.tolist(), strict=True):
                seen.setdefault(case, set()).update(name for name, one in zip(ALL, there, strict=True) if one)
    return seen


@pytest.mark.parametrize("how", [{}, {"batch_size": 2, "samples_per_case": 3}, {"steps_per_epoch": 12}, {"seed": 7}])
def test_no_case_is_ever_seen_in_two_modalities(cohort: PreparedCohort, how: dict[str, int]) -> None:
    seen = shown(loader(cohort, **how), epochs=6)
    assert all(len(names) == 1 for names in seen.values())
    counts = [sum(names == {name} for names in seen.values()) for name in ALL]
    assert counts == [2, 2, 2, 2]
    assert seen["BraTS21_004"] == {"t2"}
    assert seen["BraTS21_001"] != {"t1ce"}
    assert seen["BraTS21_002"] != {"flair"}


def test_without_it_cases_are_seen_in_all_they_have(cohort: PreparedCohort) -> None:
    seen = shown(loader(cohort, apart=False, steps_per_epoch=60), epochs=2)
    assert seen["BraTS21_000"] == set(ALL)
    assert seen["BraTS21_001"] == set(ALL) - {"t1ce"}


def test_threads_ranks_and_resuming_change_nothing(cohort: PreparedCohort) -> None:
    how = {"batch_size": 2, "samples_per_case": 2}
    whole = list(loader(cohort, **how).batches(1))
    tail = list(loader(cohort, **how, workers=2).batches(1, start=1))
    ranks = [list(loader(cohort, **how).batches(1, rank=rank, world=2)) for rank in range(2)]
    assert len(whole) == 2
    for batch, again in zip(whole[1:], tail, strict=True):
        assert batch.cases == again.cases
        assert torch.equal(batch.images, again.images)
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert sum((part.cases for part in parts), ()) == batch.cases
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)


def test_a_case_shows_the_same_modality_whatever_the_seed_of_a_training(cohort: PreparedCohort) -> None:
    """So a student and its teacher have together seen one modality of each case."""
    first, *others = (shown(loader(cohort, seed=seed), epochs=2) for seed in (0, 1, 2, 3))
    assert all(first == other for other in others)


def test_too_few_cases_are_refused(cohort: PreparedCohort) -> None:
    with pytest.raises(RecipeError, match=r"3 training cases cannot be dealt to 4 domains: none is left .*train on more cases"):
        loader(cohort, ["BraTS21_000", "BraTS21_003", "BraTS21_005"])
    with pytest.raises(RecipeError, match=r"none of the 1 training cases has flair .*all domains as one cohort"):
        loader(cohort, ["BraTS21_004"])
    with pytest.raises(RecipeError, match=r"of which the method has none .*pairs"):
        loader(cohort, domains=())


def test_a_recipe_says_so(cohort: PreparedCohort) -> None:
    """And the loader of a training gets it."""
    assert not Sampling().apart
    method = CycleGAN("t1", "t2", width=2, blocks=1)
    recipe = Recipe(data={"modalities": ALL}, method={"name": "cyclegan"}, sampling={"apart": True, "patch_size": [8, 8]})
    seen: dict[str, set[tuple[bool, ...]]] = {}
    for epoch in range(4):
        for batch in _loader(recipe, cohort, method, seed=0).batches(epoch):
            for case, there in zip(batch.cases, batch.presence.tolist(), strict=True):
                seen.setdefault(case, set()).add(tuple(there))
    assert len(seen) == 8
    assert all(len(rows) == 1 for rows in seen.values())
