"""The leak test itself: sound models pass, and every way to see what is not there is found and named."""

from __future__ import annotations

import math

import pytest
import torch

from command_line import run_main
from modistill.data.case import Case
from modistill.data.naming import conventions
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError
from modistill.inference.leak import check_leak
from modistill.inference.model import Model
from modistill.methods.modality_dropout import ModalityDropout
from modistill.methods.supervised import Supervised
from modistill.subsets import all_subsets
from modistill.weights import save_weights
from patients import ALL, STUDENT, intensities, nearest_model, write_patient

TWO = ("flair", "t1ce")
WAYS = {
    f"{garbage} {place}" for garbage in ("noise", "values of a million", "NaN") for place in ("as an image", "in the channel")
}


class Leaky(ModalityDropout):
    """Sees what it should not: `how` says where."""

    how = "sums"

    def segment_subset(self, images, presence):
        there = presence.reshape(*presence.shape, 1, 1, 1)
        classes = torch.arange(4.0).reshape(1, 4, 1, 1, 1)
        if self.how == "sums":
            return super().segment_subset(images, presence) + classes * images.mean(1, keepdim=True)
        if self.how == "times zero":  # 0 * NaN is NaN
            return self.network(images * there)
        alone = presence.sum(1) == 1
        return self.network(torch.where(there, images, 0)) + classes * alone.float() * images[:, -1:]


def any_model(method=ModalityDropout, modalities=TWO):
    torch.manual_seed(0)
    return Model("any", method(modalities, width=2), Preprocessing(modalities, modalities), conventions["brats2023"])


def case(names=ALL):
    return Case("p1", {name: Volume(image) for name, image in intensities(3).items() if name in names})


def largest(model, patient):
    """Subset -> garbage -> largest change."""
    found = {}
    for leak in check_leak(model, patient, device="cpu"):
        found.setdefault(leak.subset, {})[leak.garbage] = leak.largest
    return found


def test_a_sound_model_of_any_subset_leaks_nothing():
    found = largest(any_model(), case())
    assert list(found) == list(all_subsets(TWO))
    assert set(found["flair",]) == set(found["t1ce",]) == WAYS
    assert {value for row in found.values() for value in row.values()} == {0.0}
    full = largest(any_model(), case(TWO))  # of the full set nothing is missing
    assert list(full) == [("flair",), ("t1ce",)]


def test_a_student_never_sees_privileged_images():
    found = largest(nearest_model(), case())
    assert found == {STUDENT: {f"{name} as an image": 0.0 for name in ("noise", "values of a million", "NaN")}}


@pytest.mark.parametrize(
    ("how", "finite"),
    [
        ("sums", {"noise in the channel", "values of a million in the channel"}),
        ("times zero", set()),
        ("one subset", {"noise in the channel", "values of a million in the channel"}),
    ],
)
def test_a_leak_is_found_where_it_is(how, finite, monkeypatch):
    monkeypatch.setattr(Leaky, "how", how)
    row = largest(any_model(Leaky), case(TWO))["flair",]
    assert {name for name, value in row.items() if 0 < value < math.inf} == finite
    assert {name for name, value in row.items() if value == math.inf} == {"NaN in the channel"}


def test_a_case_that_can_show_nothing_is_refused():
    with pytest.raises(CaseError, match=r"p1: lacks t1ce \(give a case that has all the model reads\)"):
        largest(any_model(), case(STUDENT))
    with pytest.raises(CaseError, match=r"p1: has nothing that the model does not read \(give one with privileged sequences\)"):
        largest(nearest_model(), case(STUDENT))


# --------------------------------------------------------------------------- the command line


def save(folder, method, name, modalities):
    card = {
        "name": "tiny",
        "method": {"name": name, "modalities": list(modalities), "width": 2},
        "convention": "brats2021",
        "preprocessing": Preprocessing(modalities, modalities).to_json(),
        "inference": {"window": None, "overlap": 0.5, "mirror": []},
    }
    save_weights(folder / "model.safetensors", method.network.state_dict(), card)
    return folder


def test_the_command_says_so_and_ends_with_0_or_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    run = save(tmp_path / "run", any_model().method, "modality_dropout", TWO)
    write_patient(tmp_path / "in", "p1", without=("t1ce",))
    write_patient(tmp_path / "in", "p2")
    assert run_main("check-leak", run, tmp_path / "in", "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert "tiny, case p2" in shown
    assert "nothing leaks: every bit is the same" in shown
    monkeypatch.setattr(ModalityDropout, "segment_subset", lambda self, images, presence: self.network(images * presence[0, 0]))
    assert run_main("check-leak", run, tmp_path / "in", "--device", "cpu") == 2
    shown = capsys.readouterr().out
    assert "leaks with flair" in shown
    assert "nothing leaks" not in shown


def test_the_command_wants_a_case_that_can_show_it(tmp_path, capsys):
    torch.manual_seed(0)
    student = save(tmp_path / "student", Supervised(STUDENT, width=2), "supervised", STUDENT)
    teacher = save(tmp_path / "teacher", Supervised(ALL, width=2), "supervised", ALL)
    write_patient(tmp_path / "in", "p1", without=("t1ce",))
    assert run_main("check-leak", teacher, tmp_path / "in", "--device", "cpu") == 2
    assert "no case has flair, t1ce, t1, t2" in capsys.readouterr().err
    assert run_main("check-leak", student, tmp_path / "in", "--device", "cpu") == 2
    assert "p1: has nothing that the model does not read" in capsys.readouterr().err
    write_patient(tmp_path / "in", "p2")
    assert run_main("check-leak", student, tmp_path / "in", "--device", "cpu") == 0
