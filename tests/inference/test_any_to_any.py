"""One translation of many sequences into many: which is read, which is made, and what is said about it."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import nibabel
import numpy as np
import pytest

from any_to_any import ALL, FACTORS, any_model, sequence, write, write_patients
from modistill.data.case import Case
from modistill.data.folder import find_cases
from modistill.data.volume import Volume
from modistill.errors import CaseError, ModistillError, RecipeError
from modistill.inference.cohort import CaseRow, translate_cohort
from modistill.inference.model import Model
from modistill.inference.outputs import TranslationFolder
from modistill.inference.translator import NOT_ENHANCEMENT, NOT_EVIDENCE, Translation, Translator

NEVER_OPENED = b"never opened"


def patient(*names: str) -> Case:
    return Case("p", {name: Volume(sequence(name)) for name in names})


def translated(case: Case, target: str, source: str | None = None, model: Model | None = None) -> Translation:
    return Translator(model or any_model(), target, source, device="cpu").translate(case)


@pytest.mark.parametrize(("source", "target"), list(permutations(ALL, 2)))
def test_every_pair(source: str, target: str) -> None:
    made = translated(patient(*ALL), target, source)
    np.testing.assert_allclose(made.image.voxels, FACTORS[target] * sequence(source), atol=1e-3)
    assert (made.target, made.available, made.scale, made.notices) == (target, (source,), (0, 1000), ())
    assert made.description == f"SYNTHETIC {target} from {source}, not evidence; modistill utad 01234567"


def test_the_first_of_the_models_order_is_translated_and_said() -> None:
    """Not of the case's order, and never the target itself."""
    made = translated(patient("t2", "t1ce", "t1"), "t1ce")
    assert made.available == ("t1",)
    assert made.notices == ("made from t1; t2 could be translated, too",)
    np.testing.assert_allclose(made.image.voxels, 0.25 * sequence("t1"), atol=1e-3)
    turned = any_model(reads=ALL[::-1])
    assert translated(patient(*ALL), "t1ce", model=turned).notices == ("made from t2; t1, flair could be translated, too",)
    assert translated(patient("t2", "t1ce"), "t1ce").notices == ()


def test_a_source_is_prepared_as_if_nothing_else_were_there() -> None:
    """By its own normalisation of training, in its own mask: another sequence changes no bit."""
    model = any_model(scales={"t1": (0, 2000), "flair": "percentiles"})
    made = translated(patient("t1"), "t2", model=model)
    np.testing.assert_allclose(made.image.voxels, 0.75 * sequence("t1") / 2, atol=1e-3)
    beside = patient("t1", "flair")
    cut = beside.images["flair"].voxels.copy()
    cut[:9] = 0
    small = Case("p", {**beside.images, "flair": beside.images["flair"].with_voxels(cut)})
    np.testing.assert_array_equal(translated(small, "t2", "t1", model).image.voxels, made.image.voxels)


def test_the_only_target_need_not_be_named() -> None:
    one = any_model("pix2pix", {"t1ce": 0.25}, ("t1",))
    assert (Translator(one, device="cpu").target, one.pairs) == ("t1ce", (("t1", "t1ce"),))
    assert len(any_model().pairs) == 12
    assert any_model().sources("t1") == ("flair", "t1ce", "t2")


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        (None, None, "utad makes flair, t1, t1ce, t2: which of them is not said (as --to flair)"),
        ("pet", None, "utad makes no pet (it makes flair, t1, t1ce, t2)"),
        ("t1ce", "pet", "utad does not read pet (it makes t1ce from flair, t1, t2)"),
        ("t1ce", "t1ce", "t1ce is source and target (utad makes it from flair, t1, t2)"),
        ("t1ce", ("t1ce", "t1", "ct", "pet"), "utad does not read ct, pet (it makes t1ce from flair, t1, t2)"),
    ],
)
def test_wrong_wishes_are_one_line(target: str | None, source: str | None, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Translator(any_model(), target, source, device="cpu")
    assert str(caught.value) == message


def test_of_several_sources_the_first_that_a_case_has() -> None:
    chosen = Translator(any_model(), "t1ce", ("t2", "t1ce", "t1"), device="cpu")
    assert chosen.sources == ("t2", "t1")
    assert chosen.require_source(("flair", "t1", "t2")) == ("t2",)
    assert chosen.require_source(("flair", "t1")) == ("t1",)
    with pytest.raises(CaseError, match="needs one of t2, t1 to make t1ce"):
        chosen.require_source(("flair",))


@pytest.mark.parametrize(
    ("has", "source", "message"),
    [
        (("t1ce",), None, "p: has t1ce, lacks flair, t1, t2 (utad needs one of flair, t1, t2 to make t1ce)"),
        (("t1", "t2"), "flair", "p: has t1, t2, lacks flair (utad needs flair to make t1ce)"),
    ],
)
def test_a_case_without_a_source_is_one_line(has: tuple[str, ...], source: str | None, message: str) -> None:
    with pytest.raises(CaseError) as caught:
        translated(patient(*has), "t1ce", source)
    assert str(caught.value) == message


def test_what_a_reader_must_be_told() -> None:
    record = translated(patient("flair"), "t1ce").record()
    assert NOT_ENHANCEMENT == "A synthetic T1ce is not evidence of enhancement."
    assert record["warning"] == f"{NOT_EVIDENCE} {NOT_ENHANCEMENT}"
    assert (record["target"], record["available"], record["preprocessing"]["modalities"]) == ("t1ce", ["flair"], ("t1ce",))
    assert translated(patient("t1ce"), "t2").record()["warning"] == NOT_EVIDENCE


def test_the_header_keeps_it_all() -> None:
    """79 characters: a run of a long name does not push the warning out."""
    made = translated(patient("flair"), "t1ce", model=any_model("utad_net_student_07"))
    assert len(made.description) <= 79
    assert made.description.endswith("not evidence; modistill utad_net_student_07 01234567")


# --------------------------------------------------------------------------- files


def translate(patients: Path, output: Path, target: str, source: str | None = None, how: str = "refuse") -> list[CaseRow]:
    translator = Translator(any_model(), target, source, device="cpu")
    with TranslationFolder(output, translator.target, how).opened() as folder:  # type: ignore[arg-type]
        return list(translate_cohort(translator, find_cases(patients).cases, folder))


def record_of(output: Path, case: str, target: str) -> dict:
    return json.loads((output / case / f"{case}_{target}.json").read_text())


def test_the_real_target_is_never_opened(tmp_path: Path) -> None:
    """Nor a source that is not translated; the file is the same to the bit as without them."""
    alone = write_patients(tmp_path / "alone", {"a": ("flair",)})
    beside = write_patients(tmp_path / "beside", {"a": ("flair",)})
    for name in ("t1ce", "t1", "t2"):
        (beside / "a" / f"a_{name}.nii.gz").write_bytes(NEVER_OPENED)
    rows = [*translate(alone, tmp_path / "one", "t1ce"), *translate(beside, tmp_path / "two", "t1ce")]
    assert [row.status for row in rows] == ["done", "done"]
    one, two = (tmp_path / name / "a" / "a_t1ce.nii.gz" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert list(record_of(tmp_path / "two", "a", "t1ce")["inputs"]) == ["flair"]


def test_a_damaged_source_is_one_line_and_no_other_takes_its_place(tmp_path: Path) -> None:
    patients = write_patients(tmp_path / "in", {"a": ALL, "b": ALL})
    damaged = patients / "a" / "a_flair.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    failed, done = translate(patients, tmp_path / "out", "t1ce")
    assert (failed.status, done.status, done.available) == ("failed", "done", ("flair",))
    assert str(failed).startswith(f"a: {damaged}: ")
    assert not (tmp_path / "out" / "a").exists()
    (other, _) = translate(patients, tmp_path / "out", "t1ce", "t2", "continue")
    assert (other.status, other.available, other.reason) == ("done", ("t2",), "utad translates t2 into t1ce")


def test_one_folder_holds_several_targets(tmp_path: Path) -> None:
    patients, out = write_patients(tmp_path / "in", {"a": ALL}), tmp_path / "out"
    translate(patients, out, "t1ce")
    before = (out / "a" / "a_t1ce.nii.gz").read_bytes()
    with pytest.raises(ModistillError, match="is not empty"):
        translate(patients, out, "t1")
    assert [row.status for row in translate(patients, out, "t1", how="continue")] == ["done"]
    assert [row.status for row in translate(patients, out, "t1", how="overwrite")] == ["done"]
    assert (out / "a" / "a_t1ce.nii.gz").read_bytes() == before
    assert [row.status for target in ("t1", "t1ce") for row in translate(patients, out, target, how="continue")] == [
        "skipped"
    ] * 2
    assert [case.modalities for case in find_cases(out).cases] == [("t1", "t1ce")]
    header = nibabel.load(out / "a" / "a_t1.nii.gz").header["descrip"].item()
    assert header == b"SYNTHETIC t1 from flair, not evidence; modistill utad 01234567"


def test_continue_knows_the_source(tmp_path: Path) -> None:
    """Asked for, or first by chance: the same file is done, another source is not."""
    patients, out = write_patients(tmp_path / "in", {"a": ("t1", "t2")}), tmp_path / "out"
    (row,) = translate(patients, out, "t1ce")
    assert (row.status, row.notices) == ("done", ("made from t1; t2 could be translated, too",))
    assert record_of(out, "a", "t1ce")["made_with"]["source"] == "t1"
    assert record_of(out, "a", "t1ce")["made_with"]["target"] == "t1ce"
    assert [row.status for row in translate(patients, out, "t1ce", "t1", "continue")] == ["skipped"]
    assert [row.status for row in translate(patients, out, "t1ce", "t2", "continue")] == ["done"]
    write(patients / "a" / "a_flair.nii.gz", sequence("flair"))
    (row,) = translate(patients, out, "t1ce", how="continue")
    assert (row.status, row.available, record_of(out, "a", "t1ce")["available"]) == ("done", ("flair",), ["flair"])
