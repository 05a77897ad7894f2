"""From an image to a synthetic one: grids, scales, what is written, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modistill.data.case import Case
from modistill.data.folder import find_cases
from modistill.data.naming import conventions
from modistill.data.nifti import read_volume
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError, ModelError
from modistill.evaluation.translations import real_on_scale
from modistill.inference.cohort import CaseRow, exit_code, translate_cohort
from modistill.inference.model import Model
from modistill.inference.outputs import TranslationFolder
from modistill.inference.predictor import Predictor
from modistill.inference.translator import Translator
from modistill.methods.base import TranslationMethod
from patients import nearest_model

SHAPE = (34, 20, 18)
WINDOW = (-1000.0, 500.0)


class Scaled(TranslationMethod):
    """The image times a number, which is 1 unless said otherwise; slice by slice or as a volume."""

    deployed = "network"

    def __init__(self, source: str = "mr", target: str = "ct", *, dims: int = 2, factor: float = 1.0) -> None:
        super().__init__()
        self.dims, self.targets, self.reads, self.players = dims, (target,), {"network": (source,)}, {}
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.network.weight, factor)

    def losses(self, batch):
        raise NotImplementedError

    def translate(self, images: Tensor, target: str) -> Tensor:
        if images.ndim != self.dims + 2 or target not in self.targets:
            raise ValueError(images.shape, target)
        return images * self.network.weight


def model(method: TranslationMethod, how: object, target: object, *, window=None, **preparation) -> Model:
    """A model whose source and target are normalised so."""
    (source,), (made,) = method.available, method.targets
    prepared = Preprocessing((source,), (source,), {source: how}, **preparation)
    real = Preprocessing((made,), (made,), {made: target})
    return Model(
        "plain", method, prepared, conventions["chest"], window=window, digest="0123456789abcdef", targets={made: real}
    )


def noise(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Whole numbers from 0 to 999 in a box in a zero background."""
    voxels = np.zeros(shape, np.float32)
    voxels[3:-2, 2:-4, 1:-3] = np.random.default_rng(seed).integers(0, 1000, (shape[0] - 5, shape[1] - 6, shape[2] - 4))
    return voxels


def write(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def oblique() -> np.ndarray:
    """Axes permuted, flipped and turned by 8 degrees; of numbers that single precision holds."""
    c, s = np.cos(np.radians(8)), np.sin(np.radians(8))
    axes = np.array([[0, -c, s], [0, -s, -c], [1, 0, 0]]) * (1.25, 1.5, 2.5)
    affine = np.eye(4)
    affine[:3] = np.column_stack([axes, (41.7, -13.3, 77.7)])
    return affine.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_window_is_left_again(dims: int) -> None:
    """0 to 1000 becomes 0 to 1 becomes -1000 to 500 HU; the background and what the crop cut off is -1000."""
    voxels = noise()
    made = Translator(model(Scaled(dims=dims), (0, 1000), WINDOW), device="cpu").translate(Case("p", {"mr": Volume(voxels)}))
    np.testing.assert_allclose(made.image.voxels, -1000 + 1.5 * voxels, atol=2e-4)
    assert (made.image.voxels[voxels == 0] == -1000).all()
    assert (made.image.voxels.dtype, made.scale, made.record()["scale"]["unit"]) == (np.float32, WINDOW, "HU")


@pytest.mark.parametrize("how", ["landmarks", "percentiles", "hadnet", WINDOW])
def test_an_identity_gives_the_normalised_image(how: object) -> None:
    """To the bit, where the scale is 0 to 1; so a real image prepared alike is a perfect translation."""
    image = Volume(noise(1))
    read, real = (
        Preprocessing((name,), (name,), {name: how}, landmarks={name: tuple(np.linspace(0, 1, 12) ** 2)})
        for name in ("mr", "ct")
    )
    own = Model("plain", Scaled("mr", "ct"), read, conventions["chest"], targets={"ct": real})
    made = Translator(own, device="cpu").translate(Case("p", {"mr": image}))
    expected = real_on_scale(image, "ct", real).voxels
    assert expected.min() == 0 < expected.max() <= 1
    if how == WINDOW:
        np.testing.assert_allclose(made.image.voxels, 1500 * expected - 1000, atol=2e-4)
    else:
        np.testing.assert_array_equal(made.image.voxels, expected)


def test_resampled_padded_and_in_windows_it_comes_back_to_its_grid() -> None:
    ramp = np.broadcast_to(np.linspace(1, 999, 40)[:, None, None], (40, 36, 20)).astype(np.float32)
    image = Volume(ramp, np.diag([1.0, 1.0, 2.0, 1.0]))
    whole = model(Scaled(dims=3), (0, 1000), "percentiles", spacing_mm=(2, 2, 2), size=(24, 20, 24), window=(16, 16, 16))
    made = Translator(whole, device="cpu").translate(Case("p", {"mr": image}))
    assert made.image.shape == image.shape
    np.testing.assert_allclose(made.image.voxels[2:-2, 2:-2], ramp[2:-2, 2:-2] / 1000, atol=1e-3)


def test_what_the_size_cuts_off_is_the_lowest_and_is_told() -> None:
    image = Volume(noise(2) + 1)
    made = Translator(model(Scaled(), (0, 1001), WINDOW, size=(20, 20, 18)), device="cpu").translate(Case("p", {"mr": image}))
    assert (made.image.voxels[:7] == -1000).all()
    assert made.notices == ("larger than the size the model reads: what lies outside is -1000",)


def test_nothing_leaves_the_scale() -> None:
    made = Translator(model(Scaled(factor=3.0), (0, 1000), WINDOW), device="cpu").translate(Case("p", {"mr": Volume(noise())}))
    assert (made.image.voxels.min(), made.image.voxels.max()) == WINDOW


def test_what_a_method_draws_is_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scaled, "translate", lambda self, images, target: torch.rand_like(images))
    case = Case("p", {"mr": Volume(noise())})
    first, again, other = (
        Translator(model(Scaled(), (0, 1000), WINDOW), device="cpu", seed=seed).translate(case).image.voxels
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_wrong_kind_of_model_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"had_net segments and translates nothing \(modistill predict\)"):
        Translator(nearest_model(), device="cpu")
    translating = model(Scaled(), (0, 1000), WINDOW)
    with pytest.raises(ModelError, match=r"plain translates into ct and segments nothing \(modistill translate\)"):
        Predictor([translating], device="cpu")


def test_a_model_that_does_not_say_its_scale_is_refused() -> None:
    one = model(Scaled(), (0, 1000), WINDOW)
    silent = Model("old", one.method, one.preprocessing, one.convention)
    with pytest.raises(ModelError, match="old does not say how ct was normalised"):
        Translator(silent, device="cpu")
    with pytest.raises(ModelError, match="ct is on no scale: z-scores have no lowest and no highest value"):
        Translator(model(Scaled(), (0, 1000), "zscore"), device="cpu")


def test_what_cannot_be_translated_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    translator = Translator(model(Scaled(), (0, 1000), WINDOW), device="cpu")
    with pytest.raises(CaseError, match=r"p: has t1, lacks mr \(plain needs mr to make ct\)"):
        translator.translate(Case("p", {"t1": Volume(noise())}))
    monkeypatch.setattr(Scaled, "translate", lambda self, images, target: images * float("nan"))
    with pytest.raises(ModelError, match="p: the network's output is not finite"):
        translator.translate(Case("p", {"mr": Volume(noise())}))


# --------------------------------------------------------------------------- files


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Three patients with MR on an oblique grid; the second file is cut, and the first has a CT that is none."""
    root = tmp_path / "in"
    for seed, name in enumerate(("a", "b", "c")):
        write(root / name / f"{name}_mr.nii.gz", noise(seed), oblique())
    (root / "a" / "a_ct.nii.gz").write_bytes(b"never opened")
    damaged = root / "b" / "b_mr.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    return root


def translate(patients: Path, output: Path, how: str = "refuse") -> list[CaseRow]:
    translator = Translator(model(Scaled(), (0, 1000), WINDOW), device="cpu")
    with TranslationFolder(output, translator.target, how).opened() as folder:  # type: ignore[arg-type]
        return list(translate_cohort(translator, find_cases(patients).cases, folder))


def test_the_grid_is_that_of_the_file_to_the_bit(patients: Path, tmp_path: Path) -> None:
    rows = translate(patients, tmp_path / "out")
    assert [row.status for row in rows] == ["done", "failed", "done"]
    assert exit_code(rows) == 3
    before, after = nibabel.load(patients / "c" / "c_mr.nii.gz"), nibabel.load(tmp_path / "out" / "c" / "c_ct.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert (after.shape, after.get_data_dtype()) == (before.shape, np.float32)
    np.testing.assert_allclose(after.get_fdata(), -1000 + 1.5 * before.get_fdata(), atol=2e-4)
    assert after.header["descrip"].item() == b"SYNTHETIC ct from mr, not evidence; modistill plain 01234567"


def test_a_case_that_failed_leaves_nothing(patients: Path, tmp_path: Path) -> None:
    rows = translate(patients, tmp_path / "out")
    assert "truncated" in rows[1].reason or "damaged" in rows[1].reason
    assert str(rows[1]).startswith("b: ")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*") if path.name != ".lock") == [
        *("a_ct.json", "a_ct.nii.gz", "c_ct.json", "c_ct.nii.gz", "report.json"),
    ]
    assert not (tmp_path / "out" / "b").exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["done"], report["failed"], report["models"][0]["name"]) == (2, 1, "plain")


def test_the_record_brings_a_real_image_to_the_same_scale(patients: Path, tmp_path: Path) -> None:
    translate(patients, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "a" / "a_ct.json").read_text())
    assert (record["synthetic"], record["available"], record["target"]) == (True, ["mr"], "ct")
    assert record["scale"] == {"lowest": -1000, "highest": 500, "unit": "HU"}
    assert record["model"]["digest"] == "0123456789abcdef"
    preprocessing = Preprocessing.from_json(record["preprocessing"])
    real = Volume(np.array([-2000, -1000, -250, 500, 900], np.float32).reshape(5, 1, 1))
    found = real_on_scale(real, "ct", preprocessing).voxels.ravel()
    np.testing.assert_allclose(found, [0, 0, 0.5, 1, 1])


def test_the_folder_is_a_cohort_again(patients: Path, tmp_path: Path) -> None:
    translate(patients, tmp_path / "out")
    cohort = find_cases(tmp_path / "out")
    assert [(case.id, case.modalities) for case in cohort.cases] == [("a", ("ct",)), ("c", ("ct",))]
    assert not cohort.faults
    assert cohort.cases[0].read().images["ct"].shape == read_volume(patients / "a" / "a_mr.nii.gz").shape


def test_continue_does_what_is_missing_or_no_longer_matches(patients: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    translate(patients, output)
    write(patients / "b" / "b_mr.nii.gz", noise(7), oblique())
    assert [row.status for row in translate(patients, output, "continue")] == ["skipped", "done", "skipped"]
    (output / "a" / "a_ct.json").unlink()  # killed between image and record
    write(patients / "c" / "c_mr.nii.gz", noise(8), oblique())
    assert [row.status for row in translate(patients, output, "continue")] == ["done", "skipped", "done"]
