"""Two domains of different patients: prepared as one cohort, drawn as unpaired batches, sliced for networks of two axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from modistill.data.batch import Batch
from modistill.data.folder import find_cases
from modistill.data.loading import Loader
from modistill.data.nifti import write_volume
from modistill.data.normalisation import landmarks, standard_landmarks
from modistill.data.preparing import Preparation, prepare
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError, RecipeError
from modistill.inference.windows import by_slices, predict_windows

WINDOW = {"ct": (-1000.0, 500.0), "mr": "landmarks"}


def write_patients(root: Path, *, ct: int, mr: int, both: int = 0) -> Path:
    """`ct` patients with CT, `mr` with MR, `both` with both; nothing is zero outside, as in real CT."""
    for index in range(ct + mr + both):
        rng = np.random.default_rng(index)
        name, affine = f"P{index:02d}", np.diag([2.0, 2.0, 3.0, 1.0])
        shape = (18 + index % 3, 16, 6)
        labels = np.zeros(shape, np.uint8)
        labels[4:8, 4:8, 2:4] = 1
        images = {"ct": rng.uniform(-1000, 400, shape), "mr": rng.gamma(3.0, 30.0 + 10 * index, shape) + 1}
        there = ["ct"] if index < ct else ["mr"] if index < ct + mr else ["ct", "mr"]
        for modality in there:
            volume = Volume(images[modality].astype(np.float32), affine)
            write_volume(root / name / f"{name}_{modality}.nii.gz", volume, dtype=np.float32)
        write_volume(root / name / f"{name}_seg.nii.gz", Volume(labels, affine), dtype=np.uint8)
    return root


def prepared(root: Path, output: Path, split=None, **settings) -> Preparation:
    how = {"modalities": ("ct", "mr"), "available": ("ct",), "normalisation": WINDOW, "convention": "chest", **settings}
    return prepare(find_cases(root), output, Preprocessing(**how), split or {"train": 1.0}, workers=1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    root = tmp_path_factory.mktemp("unpaired")
    return prepared(write_patients(root / "raw", ct=3, mr=4, both=1), root / "prepared")


def loader(done: Preparation, **settings) -> Loader:
    how = {"modalities": ("ct", "mr"), "available": ("ct",), "domains": (("ct",), ("mr",)), "workers": 0, **settings}
    return Loader(done.cohort, done.cohort.ids("train"), **how)


def test_patients_of_either_domain_are_prepared_each_in_its_own_way(done: Preparation) -> None:
    assert not done.faults
    ct, mr, both = (done.cohort.read(case) for case in ("P00", "P03", "P07"))
    assert [found.presence.tolist() for found in (ct, mr, both)] == [[True, False], [False, True], [True, True]]
    raw = np.random.default_rng(0).uniform(-1000, 400, (18, 16, 6)).astype(np.float32)
    np.testing.assert_allclose(ct.images[0], (raw + 1000) / 1500, atol=1e-3)
    assert not ct.images[1].any()
    assert not mr.images[0].any()
    assert 0 <= mr.images[1].min() < mr.images[1].max() <= 1


def test_landmarks_are_those_of_the_training_cases_alone(tmp_path: Path) -> None:
    raw = write_patients(tmp_path / "raw", ct=2, mr=4)
    split = {"train": ["P00", "P02", "P03"], "validation": ["P01", "P04"], "test": ["P05"]}
    found = prepared(raw, tmp_path / "one", split).cohort.plan.preprocessing.landmarks
    cases = {case.id: case for case in find_cases(raw).cases}
    expected = standard_landmarks([landmarks(cases[case].read(["mr"]).images["mr"].voxels) for case in ("P02", "P03")])
    assert found == {"mr": expected}
    again = prepared(raw, tmp_path / "one", split)
    assert again.kept == 6
    with pytest.raises(CaseError, match="no training case has mr, whose histogram is to be standardised"):
        prepared(raw, tmp_path / "two", {"train": ["P00", "P01"]})


def test_where_no_case_can_be_read_the_first_fault_is_named(tmp_path: Path) -> None:
    raw = write_patients(tmp_path / "raw", ct=1, mr=1)
    for path in raw.rglob("*.nii.gz"):
        path.write_bytes(b"no image")
    with pytest.raises(CaseError, match=r"none of 2 cases could be prepared: .*P0"):
        prepared(raw, tmp_path / "prepared")


def test_a_dealt_split_spreads_both_domains(tmp_path: Path) -> None:
    raw = write_patients(tmp_path / "raw", ct=6, mr=6)
    cohort = prepared(raw, tmp_path / "prepared", {"train": 0.5, "test": 0.5}).cohort
    for part in ("train", "test"):
        assert sum(cohort.entry(case).presence[0] for case in cohort.ids(part)) == 3


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_holds_samples_of_both_domains_of_different_patients(done: Preparation, batch_size: int) -> None:
    batches = loader(done, dims=2, patch_size=(16, 16), batch_size=batch_size, samples_per_case=6)
    seen: dict[str, list[str]] = {"ct": [], "mr": []}
    for batch in batches.batches(0):
        assert batch.images.shape == (2 * batch_size, 2, 16, 16)
        for name in ("ct", "mr"):
            part = batch.having((name,))
            assert part.images.shape == (batch_size, 1, 16, 16)
            assert part.images.any()
            seen[name] += part.cases
    assert len(batches) == -(-4 * 6 // batch_size)
    assert {case: seen["ct"].count(case) for case in seen["ct"]} == dict.fromkeys(("P00", "P01", "P02", "P07"), 6)
    assert set(seen["mr"]) == {"P03", "P04", "P05", "P06", "P07"}


def test_of_a_patient_with_both_a_sample_shows_one(done: Preparation) -> None:
    batches = [batch for epoch in range(3) for batch in loader(done, patch_size=(16, 16, 4)).batches(epoch)]
    rows = [(batch, index) for batch in batches for index, case in enumerate(batch.cases) if case == "P07"]
    assert len(rows) > 2
    for batch, index in rows:
        assert batch.presence[index].tolist() == [index == 0, index == 1]
        assert not batch.images[index, 1 - index].any()


def test_ranks_get_equal_shares_of_both_domains(done: Preparation) -> None:
    how = {"dims": 2, "patch_size": (16, 16), "batch_size": 2}
    whole = list(loader(done, **how).batches(1))
    ranks = [list(loader(done, **how, workers=1).batches(1, rank=rank, world=2)) for rank in range(2)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert all(len(part.having((name,)).cases) == 1 for part in parts for name in ("ct", "mr"))


def test_a_domain_without_cases_is_refused(tmp_path: Path) -> None:
    raw, how = write_patients(tmp_path / "raw", ct=2, mr=1), {"ct": (-1000, 500), "mr": "percentiles"}
    alone = prepared(raw, tmp_path / "prepared", {"train": ["P00", "P01"]}, normalisation=how)
    with pytest.raises(RecipeError, match="none of the 2 training cases has mr"):
        loader(alone)


def test_the_parts_of_a_batch_are_its_samples() -> None:
    torch.manual_seed(0)
    presence = torch.tensor([[True, False], [False, True], [True, True]])
    batch = Batch(
        torch.rand(3, 2, 4, 4), torch.arange(3 * 16).reshape(3, 4, 4), presence, ("ct", "mr"), ("ct",), ("a", "b", "c")
    )
    part = batch.having(("mr",))
    assert torch.equal(part.images, batch.images[[1, 2], 1:])
    assert torch.equal(part.labels, batch.labels[[1, 2]])
    assert (part.modalities, part.available_modalities, part.cases) == (("mr",), (), ("b", "c"))
    assert batch.having(("ct", "mr")).cases == ("c",)


def test_a_network_of_slices_sees_every_slice_by_itself() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(2, 3, 3, padding=1)
    volume = torch.randn(2, 2, 7, 9, 5)
    found = by_slices(network, at_once=4)(volume)
    for index in range(5):
        torch.testing.assert_close(found[..., index], network(volume[..., index]))
    probabilities = predict_windows(by_slices(network), volume[0], window=(7, 9, 2), mirror=(0,))
    assert probabilities.shape == (3, 7, 9, 5)
