"""`translate` and `evaluate-translations` as a user meets them: what is printed, what is written, and the exit code."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from command_line import run_main
from modistill.data.lungs import body_mask
from modistill.data.nifti import read_volume, write_volume
from modistill.data.normalisation import landmarks, standard_landmarks
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import ScoreError
from modistill.evaluation.protocol import METRICS, Protocol
from modistill.evaluation.scores import Scores, read_scores, write_scores
from modistill.evaluation.synthesis import Scale, SynthesisProtocol
from modistill.evaluation.translations import real_on_scale
from modistill.methods.cyclegan import CycleGAN
from modistill.methods.segmentor import Segmentor
from modistill.metrics.synthesis import kl_divergence, mae, nmae, psnr, ssim, worst_kl, worst_nmae
from modistill.phantom.cohort import write_cohort
from modistill.runs import load_model
from modistill.weights import save_weights

CASES = ("Phantom_00006", "Phantom_00007")
SCALED = {"ct": (-1000.0, 500.0), "mr": "landmarks"}
NOT_EVIDENCE = "A synthetic image is not evidence: it can show a lesion that is not there, and hide one that is."


def prepared(*modalities: str) -> Preprocessing:
    """With landmarks as a training would have found them."""
    found = {"mr": standard_landmarks([landmarks(np.random.default_rng(0).gamma(2, 100, 5000))])}
    return Preprocessing(modalities, modalities, {name: SCALED[name] for name in modalities}, landmarks=found)


def save_run(folder: Path, method: str, network: torch.nn.Module, arguments: dict, **card: object) -> Path:
    """A run folder as a training leaves it."""
    facts = {
        "name": folder.name,
        "method": {"name": method, **arguments},
        "convention": "chest",
        "inference": {"window": None, "overlap": 0.5, "mirror": []},
        **card,
    }
    save_weights(folder / "model.safetensors", network.state_dict(), facts)
    return folder


def save_translator(folder: Path, source: str, target: str, seed: int = 0, **card: object) -> Path:
    """A tiny CycleGAN that was not trained."""
    torch.manual_seed(seed)
    arguments = {"source": source, "target": target, "width": 2, "blocks": 1}
    network = CycleGAN(**arguments).generators["to_target"]
    known = {"preprocessing": prepared(source).to_json(), "targets": {target: prepared(target).to_json()}}
    return save_run(folder, "cyclegan", network, arguments, **(known | card))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with CT, MR and labels on one grid; a translation either way, and a segmentor."""
    root = tmp_path_factory.mktemp("translate")
    write_cohort(root / "real", 2, body="chest", seed=5, shape=(48, 48, 16), first=6, workers=1)
    shutil.copytree(root / "real", root / "ct", ignore=shutil.ignore_patterns("*_mr*", "*_seg*"))
    save_translator(root / "ct2mr", "ct", "mr")
    save_translator(root / "mr2ct", "mr", "ct")
    segmentor = Segmentor(("ct",), width=2)
    save_run(
        *(root / "segmentor", "segmentor", segmentor.network, {"modalities": ["ct"], "width": 2}),
        preprocessing=prepared("ct").to_json(),
    )
    return root


@pytest.fixture
def made(root: Path, tmp_path: Path) -> Path:
    """The translations into MR."""
    assert translate(root, tmp_path / "made") == 0
    return tmp_path / "made"


def translate(root: Path, output: Path, *more: object, model: str = "ct2mr", patients: str = "ct") -> int:
    return run_main("translate", "-i", root / patients, "-o", output, "--model", root / model, "--device", "cpu", *more)


def evaluate(translated: Path, root: Path, output: Path, *more: object) -> int:
    return run_main("evaluate-translations", translated, "-r", root / "real", "-o", output, *more)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(" ".join(capsys.readouterr()).split())


# --------------------------------------------------------------------------- translate


def test_images_records_and_what_is_said(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    assert translate(root, made) == 0
    text = told(capsys)
    assert "2 cases: ct2mr translates ct into mr 2 done" in text
    assert "scale: 0 to 1; the .json beside each image says how real mr comes to it" in text
    assert NOT_EVIDENCE in text
    for case in CASES:
        before, after = nibabel.load(root / "ct" / case / f"{case}_ct.nii.gz"), nibabel.load(made / case / f"{case}_mr.nii.gz")
        np.testing.assert_array_equal(after.affine, before.affine)
        assert after.shape == before.shape
        voxels = after.get_fdata()
        assert 0 <= voxels.min() < voxels.max() <= 1
        record = json.loads((made / case / f"{case}_mr.json").read_text())
        assert (record["synthetic"], record["warning"]) == (True, NOT_EVIDENCE)
        assert record["model"]["digest"] == json.loads((root / "ct2mr" / "model.json").read_text())["digest"]
        assert record["preprocessing"]["landmarks"]["mr"] == list(prepared("mr").landmarks["mr"])
        told_by = f"SYNTHETIC mr from ct, not evidence; modistill ct2mr {record['model']['digest'][:8]}"
        assert after.header["descrip"].item().decode() == told_by
    assert run_main("inspect", made) == 0
    assert "All 2 cases are usable" in told(capsys)


def test_into_a_window_values_are_hounsfield_units(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert translate(root, tmp_path / "out", model="mr2ct", patients="real") == 0
    assert "scale: -1000 to 500" in told(capsys)
    voxels = read_volume(tmp_path / "out" / CASES[0] / f"{CASES[0]}_ct.nii.gz").voxels
    assert -1000 <= voxels.min() < 0 < voxels.max() <= 500
    record = json.loads((tmp_path / "out" / CASES[0] / f"{CASES[0]}_ct.json").read_text())
    assert record["scale"] == {"lowest": -1000, "highest": 500, "unit": "HU"}


def test_one_bad_case_costs_itself(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / "ct", tmp_path / "ct")
    damaged = tmp_path / "ct" / CASES[0] / f"{CASES[0]}_ct.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    shutil.copytree(root / "real" / CASES[1], tmp_path / "ct" / "other", ignore=shutil.ignore_patterns("*_ct*"))
    for file in (tmp_path / "ct" / "other").glob("Phantom*"):
        file.rename(file.with_name(file.name.replace(CASES[1], "other")))
    out = tmp_path / "out"
    assert run_main("translate", "-i", tmp_path / "ct", "-o", out, "-m", root / "ct2mr", "--device", "cpu") == 3
    text = told(capsys)
    assert "1 done, 2 failed" in text
    assert f"error: {CASES[0]}: {damaged}: truncated" in text
    assert "error: other: has mr, lacks ct (ct2mr needs ct to make mr)" in text
    assert [path.name for path in out.iterdir() if path.is_dir()] == [CASES[1]]


def test_continue_overwrite_and_single_files(root: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert translate(root, made) == 2
    assert "is not empty" in told(capsys)
    assert translate(root, made, "--continue") == 0
    assert "2 skipped" in told(capsys)
    assert translate(root, made, "--overwrite") == 0
    assert "2 done" in told(capsys)
    assert translate(root, made, "--overwrite", "--continue") == 2
    image, single = root / "ct" / CASES[0] / f"{CASES[0]}_ct.nii.gz", made.parent / "single"
    assert run_main("translate", "--file", f"CT={image}", "-o", single, "-m", root / "ct2mr", "--device", "cpu") == 0
    name = f"{CASES[0]}/{CASES[0]}_mr.nii.gz"
    assert (single / name).read_bytes() == (made / name).read_bytes()


@pytest.mark.parametrize(
    ("command", "run", "message"),
    [
        ("translate", "segmentor", "segmentor segments and translates nothing (modistill predict)"),
        ("predict", "ct2mr", "ct2mr translates into mr and segments nothing (modistill translate)"),
        ("translate", "old", "old does not say how mr was normalised (train it again with this version)"),
        ("translate", "nothing", "no trained model here"),
    ],
)
def test_the_wrong_model_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, run: str, message: str
) -> None:
    if run == "old":
        save_translator(root / "old", "ct", "mr", targets={})
    assert run_main(command, "-i", root / "ct", "-o", tmp_path / "out", "-m", root / run, "--device", "cpu") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_it_is_not_written_among_the_patients(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert translate(root, root / "ct" / "out") == 2
    assert "lies inside the input folder" in told(capsys)
    assert run_main("translate", "-o", root / "out", "-m", root / "ct2mr") == 2
    assert "nothing to translate" in told(capsys)


# --------------------------------------------------------------------------- evaluate-translations


def test_scores_by_a_plain_way(root: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the table says of one case, computed from the files here."""
    assert evaluate(made, root, made.parent / "scores.csv") == 0
    table = read_scores(made.parent / "scores.csv")
    assert (table.runs, table.cases, table.regions, table.subsets) == (("ct2mr",), CASES, ("body", "TUMOUR"), ("ct",))
    case = CASES[1]
    synthetic = read_volume(made / case / f"{case}_mr.nii.gz").voxels
    real = real_on_scale(read_volume(root / "real" / case / f"{case}_mr.nii.gz"), "mr", prepared("mr")).voxels
    tumour = read_volume(root / "real" / case / f"{case}_seg.nii.gz").voxels > 0
    found = {(row.region, row.metric): row.value for row in table.rows if row.case == case}
    for region, mask in {"body": body_mask(real), "TUMOUR": tumour}.items():
        s, r = synthetic[mask], real[mask]
        assert found[region, "psnr"] == pytest.approx(psnr(s, r))
        assert found[region, "mae"] == pytest.approx(mae(s, r))
        assert found[region, "nmae"] == pytest.approx(nmae(s, r))
        assert found[region, "ssim"] == pytest.approx(ssim(synthetic, real, mask), abs=1e-6)
        assert found[region, "kl"] == pytest.approx(kl_divergence(r, s))
        assert found[region, "kl_reverse"] == pytest.approx(kl_divergence(s, r))
    text = told(capsys)
    assert "scale: mr normalised by landmarks (of the training images), 0 to 1, clipped" in text
    assert "body: largest component above the real image's Otsu threshold, slices filled" in text
    assert "SSIM: slice by slice, Gaussian window 11x11, sigma 1.5" in text


def test_the_real_image_itself_is_a_perfect_translation(root: Path, made: Path) -> None:
    """And in HU, the absolute error is in HU."""
    for case in CASES:
        real = read_volume(root / "real" / case / f"{case}_mr.nii.gz")
        write_volume(made / case / f"{case}_mr.nii.gz", real_on_scale(real, "mr", prepared("mr")), dtype=np.float32)
    assert evaluate(made, root, made.parent / "perfect.csv") == 0
    best = {"psnr": math.inf, "ssim": 1.0, "mae": 0.0, "nmae": 0.0, "kl": 0.0, "kl_reverse": 0.0}
    for row in read_scores(made.parent / "perfect.csv").rows:
        assert row.value == pytest.approx(best[row.metric]), row


def test_errors_in_hounsfield_units(root: Path, tmp_path: Path) -> None:
    """A translation that is 150 HU too bright wherever that fits: MAE 150 HU, PSNR 20 dB, NMAE 0.1 of the mean from 0 to 1."""
    assert translate(root, tmp_path / "out", model="mr2ct", patients="real") == 0
    for case in CASES:
        real = read_volume(root / "real" / case / f"{case}_ct.nii.gz")
        moved = np.where(real.voxels > 350, real.voxels - 150, real.voxels + 150).clip(-1000, 500)
        write_volume(tmp_path / "out" / case / f"{case}_ct.nii.gz", real.with_voxels(moved), dtype=np.float32)
    assert evaluate(tmp_path / "out", root, tmp_path / "s.csv", "--body-above", 0.2) == 0
    table = read_scores(tmp_path / "s.csv")
    means = {}
    for case in CASES:
        labels = read_volume(root / "real" / case / f"{case}_seg.nii.gz").voxels > 0
        hu = read_volume(root / "real" / case / f"{case}_ct.nii.gz").voxels[labels]
        means[case] = ((hu.clip(-1000, 500) + 1000) / 1500).mean()
    for row in (row for row in table.rows if row.region == "TUMOUR"):
        expected = {"mae": 150, "nmae": 0.1 / means[row.case], "psnr": 20}.get(row.metric)
        assert expected is None or row.value == pytest.approx(expected, rel=1e-5), row
    assert table.protocol == SynthesisProtocol((Scale("ct", "-1000:500", -1000, 500),), body_above=0.2)


def test_runs_can_be_compared(root: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By name, by default, and not where the rules differ."""
    one, two, other = (made.parent / f"{name}.csv" for name in ("one", "two", "other"))
    save_translator(root / "second", "ct", "mr", seed=1)
    assert translate(root, made.parent / "second", model="second") == 0
    assert evaluate(made, root, one) == evaluate(made.parent / "second", root, two) == 0
    capsys.readouterr()
    assert run_main("compare", one, two, "--control", "ct2mr", "--metric", "psnr", "--resamples", 100) == 0
    text = told(capsys)
    assert "PSNR (dB), higher is better" in text
    assert "SSIM: slice by slice" in text
    assert run_main("compare", one, two, "--control", "ct2mr", "--resamples", 100, "-o", made.parent / "table.md") == 0
    text = told(capsys)
    assert all(words in text for words in ("SSIM, higher is better", "NMAE, lower is better", "KL(real, synthetic), lower"))
    assert evaluate(made.parent / "second", root, other, "--dims", 3) == 0
    assert run_main("compare", one, other, "--control", "ct2mr") == 2
    assert "protocols differ between ct2mr and second: dims 2 and 3" in told(capsys)


def test_a_translation_that_cannot_be_used_has_failed(root: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its record is lost; the other is scored, and the exit code says it."""
    record = made / CASES[0] / f"{CASES[0]}_mr.json"
    record.unlink()
    capsys.readouterr()
    assert evaluate(made, root, made.parent / "s.csv") == 2
    image = record.with_suffix(".nii.gz")
    assert f"error: {CASES[0]}: {image}: has no record beside it: its scale is unknown (translate it again)" in told(capsys)
    table = read_scores(made.parent / "s.csv")
    assert table.failed == CASES[:1]
    real = real_on_scale(read_volume(root / "real" / CASES[0] / f"{CASES[0]}_mr.nii.gz"), "mr", prepared("mr"))
    tumour = real.voxels[read_volume(root / "real" / CASES[0] / f"{CASES[0]}_seg.nii.gz").voxels > 0]
    worst = {"psnr": 0, "ssim": -1, "mae": 1, "nmae": worst_nmae(tumour), "kl": worst_kl(), "kl_reverse": worst_kl()}
    assert {row.metric: row.value for row in table.rows if row.case == CASES[0] and row.region == "TUMOUR"} == worst
    assert all(row.status == "measured" for row in table.rows if row.case == CASES[1])
    shutil.rmtree(made / CASES[0])
    assert evaluate(made, root, made.parent / "s.csv") == 2
    assert f"error: {CASES[0]}: no translation: counted as failed" in told(capsys)
    (made.parent / "ids.txt").write_text(CASES[1])
    assert evaluate(made, root, made.parent / "s.csv", "--cases", made.parent / "ids.txt") == 0


def test_another_grid_and_another_scale_are_one_line(root: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = made / CASES[0] / f"{CASES[0]}_mr.nii.gz"
    volume = read_volume(image)
    write_volume(image, Volume(volume.voxels[:-1], volume.affine), dtype=np.float32)
    capsys.readouterr()
    assert evaluate(made, root, made.parent / "s.csv") == 2
    assert f"error: {CASES[0]}: {image}: the translation has shape 47x48x16, the real mr has 48x48x16" in told(capsys)
    write_volume(image, volume.with_voxels(volume.voxels * 1000), dtype=np.float32)
    assert evaluate(made, root, made.parent / "s.csv") == 2
    assert "its record says 0 to 1 (translate it again)" in told(capsys)


def test_a_record_of_another_scale_or_of_none(root: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made / CASES[1] / f"{CASES[1]}_mr.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"preprocessing": Preprocessing(("mr",), ("mr",), {"mr": (0, 900)}).to_json()}))
    capsys.readouterr()
    assert evaluate(made, root, made.parent / "s.csv") == 2
    assert "was made on another scale than the first: normalisation landmarks and 0:900" in told(capsys)
    path.write_text("{")
    assert evaluate(made, root, made.parent / "s.csv") == 2
    assert f"error: {CASES[1]}: {path}: damaged JSON" in told(capsys)
    path.write_text("{}")
    assert evaluate(made, root, made.parent / "s.csv") == 2
    assert "is not the record of a translation (translate again)" in told(capsys)


def test_a_reference_at_fault_has_no_rows(root: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / "real", made.parent / "real")
    bad = made.parent / "real" / CASES[0] / f"{CASES[0]}_mr.nii.gz"
    bad.write_bytes(b"")
    capsys.readouterr()
    assert evaluate(made, made.parent, made.parent / "s.csv") == 3
    assert f"error: {CASES[0]}: {bad}: empty file" in told(capsys)
    assert read_scores(made.parent / "s.csv").cases == CASES[1:]


def test_regions_that_a_case_lacks_are_undefined(root: Path, made: Path) -> None:
    """One case without labels, one without tumour: rows are there, values are not."""
    real = made.parent / "real"
    shutil.copytree(root / "real", real)
    (real / CASES[0] / f"{CASES[0]}_seg.nii.gz").unlink()
    labels = real / CASES[1] / f"{CASES[1]}_seg.nii.gz"
    volume = read_volume(labels)
    write_volume(labels, volume.with_voxels(0 * volume.voxels), dtype=np.uint8)
    assert evaluate(made, made.parent, made.parent / "s.csv") == 0
    table = read_scores(made.parent / "s.csv")
    undefined = [row for row in table.rows if row.region == "TUMOUR"]
    assert {row.case for row in undefined} == set(CASES)
    assert all(math.isnan(row.value) and row.status == "both_empty" for row in undefined)


def test_only_what_the_network_was_shown_counts(root: Path, made: Path) -> None:
    """Of a model of the lungs' slices: beyond them nothing is asked for."""
    for case in CASES:
        path = made / case / f"{case}_mr.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"within": "lungs", "box": [[0, 48], [0, 48], [4, 9]]}))
    assert evaluate(made, root, made.parent / "s.csv") == 0
    table = read_scores(made.parent / "s.csv")
    assert "within: only the axial slices that show lungs" in table.protocol.describe()
    case = CASES[0]
    synthetic = read_volume(made / case / f"{case}_mr.nii.gz").voxels[..., 4:9]
    real = real_on_scale(read_volume(root / "real" / case / f"{case}_mr.nii.gz"), "mr", prepared("mr")).voxels
    body = body_mask(real)[..., 4:9]  # of the whole image, then of what was shown
    (found,) = (row.value for row in table.rows if (row.case, row.region, row.metric) == (case, "body", "psnr"))
    assert found == pytest.approx(psnr(synthetic[body], real[..., 4:9][body]))


def test_nothing_to_score_is_one_line(root: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run_main("evaluate-translations", made, "-r", root / "ct", "-o", tmp_path / "s.csv") == 2
    assert "no real mr found" in told(capsys)
    assert run_main("evaluate-translations", root / "real", "-r", root / "real", "-o", tmp_path / "s.csv") == 2
    assert "holds no record of a translation" in told(capsys)
    assert evaluate(made, root, tmp_path / "s.csv", "--body-above", 1) == 2
    assert "body_above is a share of the scale, got 1" in told(capsys)


def test_air_is_no_body_unless_it_is_asked_for(root: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Noise in air is brighter than the darkest voxel: what is above it is the image, not the patient."""
    case = CASES[0]
    air = read_volume(root / "real" / case / f"{case}_ct.nii.gz").voxels < -900
    real = read_volume(root / "real" / case / f"{case}_mr.nii.gz")
    scaled = real_on_scale(real, "mr", prepared("mr"))
    outside = air & ~body_mask(read_volume(root / "real" / case / f"{case}_ct.nii.gz").voxels)
    assert outside.mean() > 0.4
    spoilt = np.where(outside, 1, scaled.voxels)  # a perfect translation, but for the air
    write_volume(made / case / f"{case}_mr.nii.gz", scaled.with_voxels(spoilt), dtype=np.float32)
    mae_of = {}
    for above in ((), ("--body-above", 0)):
        assert evaluate(made, root, made.parent / "s.csv", *above) == 0
        table = read_scores(made.parent / "s.csv")
        (mae_of[above],) = (r.value for r in table.rows if (r.case, r.region, r.metric) == (case, "body", "mae"))
        assert table.protocol.body_above == (0 if above else None)
    assert mae_of[()] < 0.03
    assert mae_of["--body-above", 0] > 0.4
    assert "body: voxels in which the real image lies above 0 % of the scale; other regions" in told(capsys)


def test_runs_with_and_without_bias_field_are_not_compared(
    root: Path, made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a translation says so, and its scores are of another protocol."""
    monkeypatch.setattr("modistill.data.preprocessing.correct_bias", lambda voxels, *_, **__: np.sqrt(voxels.clip(0)))
    corrected = replace(prepared("mr"), n4=("mr",))
    save_translator(root / "n4", "ct", "mr", targets={"mr": corrected.to_json()})
    assert translate(root, made.parent / "n4", model="n4") == 0
    record = json.loads((made.parent / "n4" / CASES[0] / f"{CASES[0]}_mr.json").read_text())
    assert record["preprocessing"]["n4"] == ["mr"]
    one, two = made.parent / "one.csv", made.parent / "two.csv"
    assert evaluate(made, root, one) == evaluate(made.parent / "n4", root, two) == 0
    assert "scale: mr, bias field taken out by N4, normalised by landmarks (of the training images)" in told(capsys)
    assert tuple(read_scores(path).protocol.scales[0].n4 for path in (one, two)) == (False, True)
    assert run_main("compare", one, two, "--control", "ct2mr", "--metric", "psnr") == 2
    assert "protocols differ between ct2mr and n4: n4 False and True" in told(capsys)


def test_of_two_targets_in_one_folder_one_is_chosen(root: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert translate(root, made, "--overwrite", model="mr2ct", patients="real") == 0
    capsys.readouterr()
    assert evaluate(made, root, made.parent / "s.csv") == 2
    assert told(capsys).strip() == f"error: {made}: holds translations into ct, mr (choose one with --to)"
    assert evaluate(made, root, made.parent / "s.csv", "--to", "CT") == 0
    assert "scale: ct normalised by -1000:500, -1000 to 500, clipped" in told(capsys)
    assert evaluate(made, root, made.parent / "s.csv", "--to", "t1") == 2
    assert f"error: {made}: holds no record of a translation into t1" in told(capsys)


def test_protocols_come_back_from_their_files(tmp_path: Path) -> None:
    scale = Scale("mr", "landmarks", landmarks=(0.0, 0.5, 1.0), n4=True)
    rules = SynthesisProtocol((scale, Scale("ct", "-1000:500", -1000, 500)), within="lungs", dims=3)
    assert rules != replace(rules, scales=(replace(scale, n4=False), rules.scales[1])) != replace(rules, body_above=0)
    for protocol in (rules, Protocol(uncertainty="case")):
        write_scores(tmp_path / "s.csv", Scores((), protocol))
        assert read_scores(tmp_path / "s.csv").protocol == protocol
    content = json.loads(json.dumps(rules.to_json()))
    for foreign in (content | {"scales": [{"target": "mr"}]}, content | {"scales": [{"unknown": 1}]}, {"scales": []}):
        with pytest.raises(ScoreError, match="foreign protocol, differs in: "):
            SynthesisProtocol.from_json(foreign)
    assert rules.differences(Protocol()) == "one is of label maps, one of synthetic images"
    failed = rules.score_failed("mr", np.array([0.25, 0.75], np.float32))
    assert set(failed) == {name for name, metric in METRICS.items() if metric.rests_on == "synthesis"}


def test_a_trained_run_says_how_its_target_was_normalised(root: Path, tmp_path: Path) -> None:
    """From patients to a synthetic image, by the commands."""
    how = {"body": "chest", "seed": 5, "shape": (40, 40, 16), "workers": 1}
    write_cohort(tmp_path / "train" / "ct", 1, without=("mr",), **how)
    write_cohort(tmp_path / "train" / "mr", 1, without=("ct",), first=1, **how)
    prepare = ("prepare", tmp_path / "train", "-o", tmp_path / "prepared", "--recipe", "chest/cyclegan")
    assert run_main(*prepare, "--fractions", 1, 0, 0, "--workers", 1) == 0
    small = ("sampling.patch_size=[32, 32]", "sampling.samples_per_case=1", "sampling.workers=0", "training.epochs=1")
    overrides = [word for override in (*small, "method.width=2", "method.blocks=1") for word in ("--set", override)]
    run = tmp_path / "run"
    assert run_main("train", "chest/cyclegan", "--data", tmp_path / "prepared", "-o", run, "--device", "cpu", *overrides) == 0
    plan = Preprocessing.from_json(json.loads((tmp_path / "prepared" / "plan.json").read_text())["preprocessing"])
    (target,) = load_model(run).targets.items()
    assert target == ("mr", plan.alone("mr"))
    assert len(target[1].landmarks["mr"]) == 12
    assert run_main("translate", "-i", root / "ct", "-o", tmp_path / "out", "-m", run, "--device", "cpu") == 0
