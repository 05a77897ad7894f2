"""Layouts: where files lie and how they are named decides what they are; what is wrong costs one case and no more."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from modistill.data.folder import CaseFiles, Fault, ImageSource, case_from_files, find_cases
from modistill.data.nifti import write_volume
from modistill.data.volume import Volume
from modistill.errors import CaseError, FileError, GeometryError, LabelError

OLD, NEW = ("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f")
FOUR = ("t1", "t1ce", "t2", "flair")


def touch(root, *names):
    """Empty files: finding cases opens no image."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def brats(root, case, words=OLD, joint="_", ending=".nii.gz"):
    touch(root, *(f"{case}/{Path(case).name}{joint}{word}{ending}" for word in (*words, "seg")))


def describe(root, **content):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))


def found(root, **options):
    cohort = find_cases(root, **options)
    return {case.id: case for case in cohort.cases}, [str(fault) for fault in cohort.faults]


# --------------------------------------------------------------------------- BraTS and other folders


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("words", "joint", "convention"), [(OLD, "_", "brats2021"), (NEW, "-", "brats2023")])
def test_brats_names_old_and_new(tmp_path, words, joint, convention, ending):
    for case in ("BraTS-GLI-00001-000", "BraTS-GLI-00002-001"):
        brats(tmp_path, case, words, joint, ending)
    cohort = find_cases(tmp_path)
    assert [case.id for case in cohort.cases] == ["BraTS-GLI-00001-000", "BraTS-GLI-00002-001"]
    assert cohort.modalities == FOUR
    assert cohort.faults == ()
    first = cohort.cases[0]
    assert (first.modalities, first.convention) == (FOUR, convention)
    assert first.labels.name == f"{first.id}{joint}seg{ending}"
    assert [source.path.name for source in first.images.values()] == [f"{first.id}{joint}{word}{ending}" for word in words]


def test_nested_folders_and_missing_sequences(tmp_path):
    brats(tmp_path, "HGG/Brats18_a_1")
    brats(tmp_path, "LGG/Brats18_b_1", words=("t2", "flair"))
    cases, faults = found(tmp_path)
    assert {name: case.modalities for name, case in cases.items()} == {"Brats18_a_1": FOUR, "Brats18_b_1": ("t2", "flair")}
    assert not faults


def test_linked_folders_are_cases_under_their_own_names_and_circles_end(tmp_path):
    brats(tmp_path / "store", "Brats18_a_1")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "Brats18_a_1").symlink_to(tmp_path / "store" / "Brats18_a_1")
    (tmp_path / "train" / "again").symlink_to(tmp_path / "train")
    cases, faults = found(tmp_path / "train")
    assert set(cases) == {"Brats18_a_1"}
    assert not faults


def test_one_case_folder_a_flat_folder_and_bare_names(tmp_path):
    brats(tmp_path / "one", "p1")
    assert list(found(tmp_path / "one" / "p1")[0]) == ["p1"]
    touch(tmp_path / "flat", *(f"p{n}_{word}.nii.gz" for n in (1, 2) for word in OLD))
    assert list(found(tmp_path / "flat")[0]) == ["p1", "p2"]
    touch(tmp_path / "bare", "anna/t1.nii", "anna/T2-FLAIR.nii.gz", "bert/t1.nii")
    cases, faults = found(tmp_path / "bare")
    assert {name: case.modalities for name, case in cases.items()} == {"anna": ("t1", "flair"), "bert": ("t1",)}
    assert not faults


def test_the_same_word_before_every_name_is_no_case_id(tmp_path):
    touch(tmp_path, *(f"{case}/scan_{word}.nii.gz" for case in ("anna", "bert") for word in OLD))
    touch(tmp_path, *(f"{case}/extra_ct.nii.gz" for case in ("anna", "bert")))
    cases, faults = found(tmp_path)
    assert {name: case.modalities for name, case in cases.items()} == {"anna": (*FOUR, "ct"), "bert": (*FOUR, "ct")}
    assert not faults


def test_a_folder_with_another_name_than_its_files(tmp_path):
    touch(tmp_path, "upload/p7_t1.nii.gz", "upload/p7_t2.nii.gz")
    assert list(found(tmp_path)[0]) == ["p7"]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (("b/b_t1c.nii.gz",), "t1ce is there twice: b_t1c.nii.gz, b_t1ce.nii.gz"),
        (("b/b_t1.nii",), "t1 is there both as .nii and as .nii.gz"),
        (("b/a_t1.nii.gz",), "named for another case, a"),
        (("HGG/b/b_t1.nii.gz",), "duplicate case id"),
        (("b/b_mask.nii.gz",), "labels is there twice"),
    ],
)
def test_a_fault_costs_its_case_only(tmp_path, extra, reason):
    for case in ("a", "b", "c"):
        brats(tmp_path, case)
    touch(tmp_path, *extra)
    cases, faults = found(tmp_path)
    assert list(cases) == ["a", "c"]
    assert any(fault.startswith("b: ") and reason in fault and fault.endswith(")") for fault in faults)


def test_a_folder_full_of_another_case_does_not_harm_that_case(tmp_path):
    brats(tmp_path, "a")
    touch(tmp_path, *(f"b/a_{word}.nii.gz" for word in OLD))
    cases, faults = found(tmp_path)
    assert list(cases) == ["a"]
    assert len(faults) == 4


def test_empty_and_labels_only_folders(tmp_path):
    brats(tmp_path, "a")
    (tmp_path / "b").mkdir()
    touch(tmp_path, "c/c_seg.nii.gz")
    cases, faults = found(tmp_path)
    assert list(cases) == ["a"]
    assert any("b: " in fault and "no image in the case folder" in fault for fault in faults)
    assert any("c: " in fault and "labels, but no image" in fault for fault in faults)


def test_unknown_sequences_are_named_and_can_be_declared(tmp_path):
    brats(tmp_path, "a")
    touch(tmp_path, "a/a_ph4.nii.gz", "a/._a_t1.nii.gz", "a/notes.txt")
    cohort = find_cases(tmp_path)
    assert [case.modalities for case in cohort.cases] == [FOUR]
    assert [fault.severity for fault in cohort.faults] == ["warning"]
    assert "unknown sequence 'ph4'" in cohort.faults[0].reason
    (tmp_path / "a" / "a_t1ce.nii.gz").unlink()
    cases, faults = found(tmp_path, modalities={"ph4": "t1ce"})
    assert cases["a"].modalities == FOUR
    assert not faults


def test_nothing_there(tmp_path):
    with pytest.raises(CaseError, match="no NIfTI image found"):
        find_cases(tmp_path)
    with pytest.raises(FileError, match="no such file or folder"):
        find_cases(tmp_path / "nowhere")
    touch(tmp_path, "scan.nii.gz")
    with pytest.raises(FileError, match="neither a folder nor a table"):
        find_cases(tmp_path / "scan.nii.gz")


# --------------------------------------------------------------------------- dataset.json

MSD_LABELS = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
NNUNET_REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}


def test_msd_task01(tmp_path):
    describe(tmp_path, modality={"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, labels=MSD_LABELS, training=[])
    touch(tmp_path, "imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz", "imagesTr/._BRATS_001.nii.gz")
    cohort = find_cases(tmp_path)
    (case,) = cohort.cases
    assert (cohort.layout, case.id, case.convention) == ("msd", "BRATS_001", "msd_task01")
    assert {name: source.channel for name, source in case.images.items()} == {"t1": 1, "t1ce": 2, "t2": 3, "flair": 0}
    assert len({source.path for source in case.images.values()}) == 1


@pytest.mark.parametrize(
    ("labels", "convention"),
    [
        (NNUNET_REGIONS, "nnunet_brats"),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 3}, "brats2023"),
        ({"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 4}, "brats2021"),
        ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "resection cavity": 4}, "brats2024"),
        ({"background": 0, "liver": 1, "tumor": 2}, None),
    ],
)
def test_nnunet_raw_and_the_meaning_of_its_label_names(tmp_path, labels, convention):
    describe(tmp_path, channel_names={"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}, labels=labels, file_ending=".nii.gz")
    touch(tmp_path, *(f"imagesTr/p_1_{n:04d}.nii.gz" for n in range(4)), "labelsTr/p_1.nii.gz", "imagesTr/p_2_0003.nii.gz")
    cohort = find_cases(tmp_path)
    assert cohort.layout == "nnunet"
    first, second = cohort.cases
    assert (first.id, first.modalities, first.convention) == ("p_1", FOUR, convention)
    assert (second.id, second.modalities, second.labels) == ("p_2", ("flair",), None)


def test_nnunet_test_images_are_found_by_their_own_folder_and_when_alone(tmp_path):
    describe(tmp_path, channel_names={"0": "CT"}, labels={"background": 0})
    touch(tmp_path, "imagesTs/q_0000.nii.gz")
    assert list(found(tmp_path)[0]) == ["q"]
    touch(tmp_path, "imagesTr/p_0000.nii.gz")
    assert list(found(tmp_path)[0]) == ["p"]
    assert list(found(tmp_path / "imagesTs")[0]) == ["q"]


def test_nnunet_faults(tmp_path):
    describe(tmp_path, channel_names={"0": "T1", "1": "T2"}, labels={})
    touch(tmp_path, "imagesTr/p_0000.nii.gz", "imagesTr/q_0002.nii.gz", "labelsTr/r.nii.gz")
    cases, faults = found(tmp_path)
    assert list(cases) == ["p"]
    assert any("q: " in fault and "no channel '0002'" in fault for fault in faults)
    assert any("r: " in fault and "labels, but no image" in fault for fault in faults)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"channel_names": 3}'])
def test_damaged_dataset_json(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(FileError, match=r"dataset\.json"):
        find_cases(tmp_path)


# --------------------------------------------------------------------------- BIDS, tables, single files


def test_bids(tmp_path):
    touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_FLAIR.nii.gz",
    )
    cohort = find_cases(tmp_path)
    assert cohort.layout == "bids"
    assert {case.id: case.modalities for case in cohort.cases} == {"sub-01": ("t1", "t1ce"), "sub-02_ses-1": ("flair",)}


def test_tables(tmp_path):
    touch(tmp_path, "x/one.nii.gz", "x/two.nii.gz", "x/seg.nii.gz")
    (tmp_path / "cases.csv").write_text(
        "case,T1w,t2f,labels,convention\nanna,x/one.nii.gz,x/two.nii.gz,x/seg.nii.gz,brats2023\n"
    )
    rows = [{"case": "anna", "T1w": "x/one.nii.gz", "t2f": "x/two.nii.gz", "labels": "x/seg.nii.gz", "convention": "brats2023"}]
    (tmp_path / "cases.json").write_text(json.dumps(rows))
    for name in ("cases.csv", "cases.json"):
        cohort = find_cases(tmp_path / name)
        (case,) = cohort.cases
        assert cohort.faults == ()
        assert (case.id, case.modalities, case.convention) == ("anna", ("t1", "flair"), "brats2023")
        assert case.labels == tmp_path / "x/seg.nii.gz"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",x.nii", "no case id"),
        ("b,y.nii", "no such file y.nii"),
        ("b,x.nii,z,z", "more cells than columns"),
        ("../b,x.nii", "cannot be a file name"),
        ("a,x.nii", "duplicate case id"),
        ("b,", "no file in the row"),
    ],
)
def test_bad_rows_are_named_and_the_others_used(tmp_path, row, reason):
    touch(tmp_path, "x.nii")
    (tmp_path / "t.csv").write_text(f"case,t1\na,x.nii\n{row}\nc,x.nii\n")
    cases, faults = found(tmp_path / "t.csv")
    assert "c" in cases
    assert "b" not in cases
    assert any(reason in fault for fault in faults)


def test_unreadable_tables(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"case,t1\n\xff\xfe,x\n")
    (tmp_path / "t.json").write_text('{"cases": 3}')
    for name in ("t.csv", "t.json"):
        with pytest.raises(FileError, match=name):
            find_cases(tmp_path / name)


def test_single_files(tmp_path):
    case = case_from_files({"flair": tmp_path / "anna" / "image.nii.gz"}, labels=tmp_path / "s.nii")
    assert (case.id, case.modalities, case.labels) == ("anna", ("flair",), tmp_path / "s.nii")
    assert case_from_files({"t1": Path("p1_t1.nii"), "t2": Path("p1_t2.nii")}).id == "p1"
    assert case_from_files({"t1": Path("p1_t1.nii")}, id="x").id == "x"
    with pytest.raises(CaseError):
        case_from_files({"t1": Path("a"), "t1n": Path("b")})
    with pytest.raises(CaseError):
        case_from_files({})


# --------------------------------------------------------------------------- reading a case


def cube(value=0, dtype="f4", shift=0.0):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 3] = shift
    return Volume((np.arange(1000).reshape(10, 10, 10) % 7 + value).astype(dtype), affine)


@pytest.fixture
def files(tmp_path):
    """A complete small case on disk."""
    for number, word in enumerate(OLD):
        write_volume(tmp_path / "p" / f"p_{word}.nii.gz", cube(number), dtype=np.int16)
    labels = cube().with_voxels(np.where(cube().voxels > 4, 4, 0))
    write_volume(tmp_path / "p" / "p_seg.nii.gz", labels, dtype=np.uint8)
    return find_cases(tmp_path).cases[0]


def test_a_case_is_read_and_only_what_is_asked_for(files):
    case = files.read()
    assert (case.modalities, case.convention, case.labels.voxels.max()) == (FOUR, "brats2021", 4)
    files.images["t1ce"].path.write_bytes(b"not opened, so it does no harm")
    files.labels.write_bytes(b"nor this")
    part = files.read(["flair", "t1", "pet"], with_labels=False)
    assert (part.modalities, part.labels) == (("t1", "flair"), None)
    with pytest.raises(CaseError, match="p: has none of the modalities asked for"):
        files.read(["pet"])


def test_channels_of_one_file_are_its_modalities(tmp_path):
    import nibabel

    data = np.stack([cube(n).voxels for n in range(4)], axis=-1)
    nibabel.Nifti1Image(data, cube().affine).to_filename(tmp_path / "four.nii.gz")
    case = CaseFiles("p", {name: ImageSource(tmp_path / "four.nii.gz", n) for n, name in enumerate(FOUR)}).read()
    np.testing.assert_array_equal(case.images["flair"].voxels, cube(3).voxels)


GRID = cube().affine
BAD_IMAGES = {
    "all voxels are 0": (CaseError, Volume(np.zeros((10, 10, 10)), GRID)),
    "all voxels are 5": (CaseError, Volume(np.full((10, 10, 10), 5), GRID)),
    r"is shifted .* 30\.0 mm": (GeometryError, cube(shift=30.0)),
    "shape 9x10x10|has 9x10x10": (GeometryError, Volume(cube().voxels[1:], GRID)),
    "spacing 1x2x4 mm|has 1x2x4 mm": (GeometryError, Volume(cube().voxels, np.diag([1.0, 2.0, 4.0, 1.0]))),
}


@pytest.mark.parametrize("reason", BAD_IMAGES)
@pytest.mark.parametrize("modality", FOUR)
def test_a_bad_image_is_refused_with_case_and_file(files, modality, reason):
    kind, bad = BAD_IMAGES[reason]
    path = files.images[modality].path
    write_volume(path, bad, dtype=np.int16)
    with pytest.raises(kind, match=reason) as caught:
        files.read()
    assert caught.value.case == "p"
    assert Path(caught.value.file).parent == path.parent
    assert caught.value.remedy


def test_bad_labels_are_refused_with_case_and_file(files):
    write_volume(files.labels, cube(0.5), dtype=np.float32)
    with pytest.raises(LabelError, match="fractions") as caught:
        files.read()
    assert (caught.value.case, caught.value.file) == ("p", str(files.labels))
    write_volume(files.labels, cube(shift=20), dtype=np.uint8)
    with pytest.raises(GeometryError, match="the label map is shifted") as caught:
        files.read()
    assert caught.value.file == str(files.labels)


def test_case_files_travel_between_processes(files):
    assert pickle.loads(pickle.dumps(files)) == files


def test_fault_reads_like_an_error():
    error = FileError("empty file", case="p", file="t1.nii", remedy="fetch it again")
    assert str(Fault.of(error)) == str(error)


def test_real_patients():
    root = Path(__file__).parents[3] / "shared" / "data" / "brats2021"
    if not root.is_dir():
        pytest.skip(f"real data absent: {root}")
    cohort = find_cases(root)
    assert len(cohort.cases) == 13
    assert cohort.faults == ()
    assert cohort.modalities == FOUR
    assert all(case.labels and case.convention == "brats2021" for case in cohort.cases)


def test_layouts_do_not_depend_on_the_order_of_the_file_system(tmp_path):
    for case in ("b", "a"):
        brats(tmp_path, case)
    cohort = find_cases(tmp_path)
    copy = tmp_path.parent / "copy"
    for case in ("a", "b"):
        shutil.copytree(tmp_path / case, copy / case)
    assert [case.id for case in find_cases(copy).cases] == [case.id for case in cohort.cases] == ["a", "b"]
