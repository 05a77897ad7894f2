from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modistill.data.augmentation import Transform, augmentations
from modistill.data.batch import Batch
from modistill.data.loading import Loader
from modistill.data.store import PreparedCohort
from modistill.errors import FileError, RecipeError
from modistill.recipe import Sampling, check
from tiny_cohort import ALL, AVAILABLE, prepare_folder, write_folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    root = tmp_path_factory.mktemp("loading")
    (root / "raw").mkdir()
    write_folder(root / "raw")
    (root / "raw" / "BraTS21_002" / "BraTS21_002_t1ce.nii.gz").unlink()
    return prepare_folder(root / "raw", root / "prepared").cohort


def make(cohort: PreparedCohort, **settings) -> Loader:
    arguments = {"modalities": ALL, "available": AVAILABLE, "workers": 0, "patch_size": (8, 9, 20), **settings}
    return Loader(cohort, cohort.ids("train"), **arguments)


def same(one: Batch, two: Batch) -> bool:
    tensors = all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("images", "labels", "presence"))
    return tensors and one.cases == two.cases and one.epoch == two.epoch


settings_of_loaders = st.fixed_dictionaries(
    {
        "batch_size": st.sampled_from([1, 2, 4]),
        "samples_per_case": st.integers(1, 3),
        "steps_per_epoch": st.sampled_from([None, None, 3]),
        "augmentation": st.sampled_from(list(augmentations.values())),
        "patch_size": st.sampled_from([None, (8, 9, 20), (30, 4, 8)]),
        "foreground_fraction": st.sampled_from([0.0, 0.5, 1.0]),
        "foreground": st.sampled_from(["probability", "share"]),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=15)
@given(settings_of_loaders, st.integers(0, 2), st.data())
def test_workers_resuming_and_ranks_change_nothing(cohort: PreparedCohort, chosen, epoch, data):
    whole = list(make(cohort, **chosen).batches(epoch))
    assert len(whole) == len(make(cohort, **chosen))
    start = data.draw(st.integers(0, len(whole)))
    tail = list(make(cohort, **chosen, workers=2).batches(epoch, start))
    assert len(tail) == len(whole) - start
    assert all(map(same, tail, whole[start:]))
    world = data.draw(st.sampled_from([n for n in (1, 2, 4) if chosen["batch_size"] % n == 0]))
    ranks = [list(make(cohort, **chosen, workers=rank).batches(epoch, rank=rank, world=world)) for rank in range(world)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert sum((part.cases for part in parts), ()) == batch.cases


def test_every_case_is_seen_as_often_as_any_other_in_a_new_order(cohort: PreparedCohort):
    loader = make(cohort, batch_size=2, samples_per_case=3)
    assert len(loader) == 6
    orders = [[case for batch in loader.batches(epoch) for case in batch.cases] for epoch in range(3)]
    for order in orders:
        assert {case: order.count(case) for case in order} == dict.fromkeys(cohort.ids("train"), 3)
    assert len(set(map(tuple, orders))) == 3
    uneven = make(cohort, batch_size=3)  # rounds run on across epochs: 2 of 2 x 3 samples are 3 rounds through 4 cases
    seen = [case for epoch in range(2) for batch in uneven.batches(epoch) for case in batch.cases]
    assert {case: seen.count(case) for case in seen} == dict.fromkeys(cohort.ids("train"), 3)


def test_steps_of_an_epoch_draw_any_case(cohort: PreparedCohort):
    """With replacement: a case may come twice in a batch, and none has to come at all."""
    loader = make(cohort, batch_size=2, steps_per_epoch=100)
    assert len(loader) == 100
    orders = [[batch.cases for batch in loader.batches(epoch, start=10)] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert len(orders[0]) == 90
    flat = [case for cases in orders[0] + orders[1] for case in cases]
    assert {flat.count(case) / len(flat) > 0.18 for case in cohort.ids("train")} == {True}
    assert 0.15 < np.mean([one == two for one, two in orders[0] + orders[1]]) < 0.35
    rounds = [{*flat[place : place + 4]} for place in range(0, 100, 4)]
    assert min(map(len, rounds)) < 4


def test_epochs_and_seeds_draw_other_patches(cohort: PreparedCohort):
    how = {"patch_size": (6, 6, 6), "steps_per_epoch": 4}
    first = [next(iter(make(cohort, seed=seed, **how).batches(epoch))) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({batch.images.numpy().tobytes() for batch in first}) == 6


def test_a_batch_holds_what_was_asked_for(cohort: PreparedCohort):
    order = ("t2", "t1ce", "flair")
    loader = make(cohort, batch_size=4, modalities=order, available=("flair", "t2"), patch_size=None)
    (batch,) = loader.batches(0)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert batch.modalities == order
    assert batch.available.shape[1] == 2
    largest = np.max([cohort.entry(case).shape for case in cohort.ids("train")], axis=0)
    assert batch.images.shape == (4, 3, *largest)
    for index, case in enumerate(batch.cases):
        stored = cohort.read(case)
        d, h, w = stored.labels.shape
        channels = [ALL.index(name) for name in order]
        assert torch.equal(batch.images[index, :, :d, :h, :w], torch.from_numpy(stored.images[channels]))
        assert batch.images[index].count_nonzero() == np.count_nonzero(stored.images[channels])
        assert batch.labels[index].sum() == stored.labels.sum()
        assert batch.presence[index].tolist() == [True, case != "BraTS21_002", True]


def test_foreground_patches_hold_foreground(cohort: PreparedCohort):
    def share(fraction: float) -> float:
        loader = make(cohort, patch_size=(3, 3, 3), samples_per_case=30, foreground_fraction=fraction)
        return float(np.mean([bool(batch.labels.any()) for batch in loader.batches(0)]))

    assert share(1.0) == 1.0
    assert share(0.0) < 0.8


@pytest.mark.parametrize(("batch_size", "fraction", "sure"), [(2, 0.33, 1), (3, 0.33, 1), (4, 0.5, 2), (2, 0, 0), (1, 1, 1)])
def test_a_share_of_every_batch_is_centred_on_foreground(cohort: PreparedCohort, batch_size: int, fraction: float, sure: int):
    """Those from round(b (1 - fraction)) on: nnU-Net's second patch of two, for 0.33."""
    how = {"foreground": "share", "foreground_fraction": fraction, "patch_size": (3, 3, 3), "steps_per_epoch": 60}
    batches = list(make(cohort, batch_size=batch_size, **how).batches(0))
    middles = np.array([batch.labels[:, 1, 1, 1].numpy() for batch in batches])
    assert (middles[:, batch_size - sure :] > 0).all()
    assert not middles[:, : batch_size - sure].size or (middles[:, : batch_size - sure] == 0).any(0).all()
    if sure:  # classes are drawn alike, though one has many times the voxels of another
        counts = np.bincount(middles[:, -1], minlength=4)[1:] / len(middles)
        assert (counts > 0.15).all()


def test_each_domain_has_its_share(cohort: PreparedCohort):
    how = {"foreground": "share", "foreground_fraction": 0.33, "patch_size": (3, 3, 3), "batch_size": 3, "steps_per_epoch": 30}
    for batch in make(cohort, domains=(("flair",), ("t2",)), **how).batches(0):
        assert (batch.labels[-2:, 1, 1, 1] > 0).all()


@dataclass(frozen=True)
class CutsItsMargin(Transform):
    """Wants voxels around the patch and cuts them off again."""

    margin: tuple[int, ...] = (2, 1)

    def sample(self, rng: np.random.Generator) -> CutsItsMargin:
        return self

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images[:, 2:-2, 1:-1], labels[2:-2, 1:-1]


@pytest.mark.parametrize("patch_size", [(8, 9, 20), (30, 4, 8), (8, 9)])
def test_the_margin_around_a_patch_is_read(cohort: PreparedCohort, patch_size):
    """Inside the case its voxels, beyond it zeros; and the patch stays where it was."""
    how = {"patch_size": patch_size, "dims": len(patch_size)}
    plain, cut = (list(make(cohort, **how, augmentation=one).batches(0)) for one in (None, CutsItsMargin()))
    assert all(map(same, plain, cut))


@pytest.mark.parametrize("patch_size", [None, (8, 9)])
def test_slices(cohort: PreparedCohort, patch_size):
    loader = make(cohort, dims=2, patch_size=patch_size, batch_size=2, foreground_fraction=1.0, samples_per_case=4)
    for batch in loader.batches(0):
        assert batch.images.ndim == 4
        assert batch.labels.shape[1:] == batch.images.shape[2:]
        assert all(labels.any() for labels in batch.labels)
    with pytest.raises(RecipeError, match="does not fit 2 dimensions"):
        make(cohort, dims=2, patch_size=(8, 8, 8))


def test_slices_of_the_padding_are_never_drawn(tmp_path: Path):
    write_folder(tmp_path / "raw")
    cohort = prepare_folder(tmp_path / "raw", tmp_path / "prepared", size=(24, 24, 60)).cohort
    loader = make(cohort, dims=2, patch_size=(24, 24), batch_size=2, foreground_fraction=0.0, samples_per_case=40)
    drawn = set()
    for batch in loader.batches(0):
        assert all(images.any() for images in batch.images)  # two thirds of the 60 slices show nothing
        drawn |= {float(images.sum()) for images in batch.images}
    assert len(drawn) > 40


def test_slices_turn_as_well_and_the_student_sees_a_part_of_what_the_teacher_sees(cohort: PreparedCohort):
    how = {"dims": 2, "patch_size": (8, 9), "batch_size": 4, "samples_per_case": 4, "augmentation": augmentations["nnunet"]}
    batches = list(make(cohort, **how).batches(0))
    assert all(map(same, batches, make(cohort, **how, workers=2).batches(0)))
    for batch in batches:
        assert batch.images.shape == (4, 4, 8, 9)
        assert torch.equal(batch.available, batch.images[:, [ALL.index(name) for name in AVAILABLE]])
        assert set(batch.labels.unique().tolist()) <= {0, 1, 2, 3}
        assert not batch.images[~batch.presence].any()


def test_threads_end_with_the_generator(cohort: PreparedCohort):
    batches = make(cohort, workers=3, samples_per_case=9).batches(0)
    list(islice(batches, 2))
    assert any("modistill-loading" in thread.name for thread in threading.enumerate())
    batches.close()
    assert not any("modistill-loading" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_case_is_named(tmp_path: Path, workers):
    write_folder(tmp_path / "raw", cases=2)
    cohort = prepare_folder(tmp_path / "raw", tmp_path / "prepared").cohort
    path = tmp_path / "prepared" / "cases" / "BraTS21_000" / "images.b2nd"
    path.write_bytes(b"")
    with pytest.raises(FileError, match="BraTS21_000: "):
        list(make(cohort, workers=workers).batches(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modalities": ("ct",)}, "have no ct"),
        ({"available": ("ct",)}, "available modality ct"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"samples_per_case": 0}, "samples_per_case is 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0"),
        ({"foreground_fraction": 1.5}, "between 0 and 1"),
        ({"foreground": "always"}, "probability or share"),
        ({"dims": 4}, "2 for slices"),
        ({"patch_size": (0, 8, 8)}, "does not fit 3"),
    ],
)
def test_what_makes_no_sense_is_refused(cohort: PreparedCohort, change, words):
    with pytest.raises(RecipeError, match=words):
        make(cohort, **change)


def test_an_empty_part_and_a_batch_that_cannot_be_divided(cohort: PreparedCohort):
    with pytest.raises(RecipeError, match="no case to draw from"):
        Loader(cohort, cohort.ids("validation"), modalities=ALL, available=AVAILABLE)
    with pytest.raises(RecipeError, match="cannot be divided among 2 ranks"):
        next(make(cohort, batch_size=1).batches(0, world=2))


def test_an_epoch_has_one_length():
    assert check(Sampling, {"steps_per_epoch": 250}, "sampling").samples_per_case == 1
    with pytest.raises(RecipeError, match="both say how long an epoch is"):
        check(Sampling, {"steps_per_epoch": 250, "samples_per_case": 2}, "sampling")
