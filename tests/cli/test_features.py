"""`modistill features`: the picture, its numbers, and what is refused first."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import run_main
from modistill.data.nifti import write_volume
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.methods.segmentor import Segmentor
from modistill.methods.supervised import Supervised
from modistill.weights import save_weights


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A table of two patients, a bright cube in noise each."""
    rows = ["case,ct,labels,convention"]
    for case in ("p1", "p2"):
        labels = np.zeros((32, 32, 2), np.uint8)
        labels[12:20, 12:20] = 1
        image = np.random.default_rng(int(case[1])).normal(500.0 * labels - 500, 200)
        write_volume(tmp_path / f"{case}_ct.nii.gz", Volume(image), dtype=np.float32)
        write_volume(tmp_path / f"{case}_seg.nii.gz", Volume(labels), dtype=np.uint8)
        rows.append(f"{case},{case}_ct.nii.gz,{case}_seg.nii.gz,chest")
    (tmp_path / "cohort.csv").write_text("\n".join(rows))
    return tmp_path / "cohort.csv"


def save(folder: Path, name: str, method) -> Path:
    card = {
        "name": folder.name,
        "method": {"name": name, "modalities": ["ct"], "width": 4, "classes": 2},
        "convention": "chest",
        "preprocessing": Preprocessing(("ct",), ("ct",), normalisation=(-1000, 500)).to_json(),
        "inference": {"window": None, "overlap": 0.5, "mirror": []},
    }
    save_weights(folder / "model.safetensors", method.network.state_dict(), card)
    return folder


def test_a_picture_and_its_numbers(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    runs = [save(tmp_path / name, "segmentor", Segmentor(("ct",), width=4)) for name in ("ct_only", "cmedl")]
    out = tmp_path / "features.png"
    few = ("--voxels", 60, "--perplexity", 5, "--iterations", 300, "--patch", 12, "--device", "cpu")
    assert run_main("features", *runs, "-i", cohort, "-o", out, *few) == 0
    printed = capsys.readouterr().out
    assert "TUMOUR against background" in printed
    assert "of 2 patients, the same for every run; t-SNE, perplexity 5, 300 iterations, seed 0" in printed
    assert out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    content = json.loads(out.with_suffix(".json").read_text())
    assert list(content["runs"]) == ["ct_only", "cmedl"]
    assert 0 <= content["runs"]["cmedl"]["probe_auc"] <= 1
    assert (content["patch"], content["voxels"], content["region"]) == (12, 60, "TUMOUR")
    other = save(tmp_path / "teacher", "supervised", Supervised(("ct",), classes=2, width=4))
    assert run_main("features", other, "-i", cohort, "-o", out) == 2
    assert "model.safetensors: UNet has no hint sites, whose features could be shown" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert run_main("features", *runs, "-i", tmp_path / "nowhere", "-o", out) == 2
    assert capsys.readouterr().err == "error: scikit-learn is not installed (pip install 'modistill[analysis]')\n"


def test_cases_at_fault_are_named_and_visits_are_one_patient(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, first, second = cohort.read_text().splitlines()
    lines = [header, first.replace("p1,", "p_ses-1,"), second.replace("p2,", "p_ses-2,")]
    cohort.write_text("\n".join([*lines, first.replace("p1,", "q,"), second.replace("p2,", "q,")]))
    run = save(tmp_path / "ct_only", "segmentor", Segmentor(("ct",), width=4))
    out = tmp_path / "features.png"
    few = ("--voxels", 60, "--perplexity", 5, "--iterations", 300, "--patch", 12, "--device", "cpu")
    assert run_main("features", run, "-i", cohort, "-o", out, *few) == 3
    told = capsys.readouterr()
    fault = "duplicate case id"
    assert told.err.startswith("error: q: ")
    assert fault in told.err
    assert "of 1 patients, the same for every run" in told.out
    content = json.loads(out.with_suffix(".json").read_text())
    assert [fault in line for line in content["faults"]] == [True]
    assert content["runs"]["ct_only"]["probe_auc"] is None
