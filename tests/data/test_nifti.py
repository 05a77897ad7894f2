"""The guarded reader refuses what cannot be an image, by file and reason, and reads the rest as nibabel does."""

import gzip
import itertools
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modistill.data.nifti import read_labels, read_volume, read_volumes, write_volume
from modistill.data.volume import Volume
from modistill.errors import FileError, GeometryError, LabelError

LPS = np.array([[-1.5, 0, 0, 10.0], [0, -2.0, 0, 20.0], [0, 0, 3.0, -5.0], [0, 0, 0, 1]])
SHAPE = (5, 6, 7)


def voxels(dtype="int16"):
    return np.random.default_rng(1).integers(0, 100, SHAPE).astype(dtype)


def raw_file(data=None, affine=LPS, kind=nibabel.Nifti1Image, **fields):
    """The bytes of a `.nii` file, with header fields overwritten after everything else was made consistent."""
    data = voxels() if data is None else data
    image = kind(data, affine, dtype=data.dtype)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    content = bytearray(image.to_bytes())
    # nibabel's header object is tied to its own bytes; patching a fresh one keeps offsets out of the tests
    size = 348 if kind is nibabel.Nifti1Image else 540
    header = type(image.header)(bytes(content[:size]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:size] = header.binaryblock
    return bytes(content)


def put(folder, content, name="t1.nii"):
    path = folder / name
    path.write_bytes(content)
    return path


def dims(*sizes):
    return [*sizes, *([1] * (8 - len(sizes)))]


def pixdim(*sizes):
    return [1, *sizes, 0, 0, 0, 0]


GOOD = raw_file()
ZIPPED = gzip.compress(GOOD, mtime=0)
RANDOM = gzip.compress(raw_file(np.random.default_rng(0).integers(-32768, 32767, (30, 30, 30)).astype("int16")))
IN_VAIN = np.diag([1.0, 1, 1, 1])

DAMAGED = {
    "empty": (b"", "empty file"),
    "zip cut in the middle": (RANDOM[: len(RANDOM) // 2], r"truncated, \d+ of 54352 bytes"),
    "zip cut in the header": (ZIPPED[:40], "truncated"),
    "zip end missing": (ZIPPED[:-8], "checksum is missing"),
    "zip end cut": (ZIPPED[:-3], "checksum is missing"),
    "zip checksum wrong": (ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], "damaged gzip stream"),
    "zip length wrong": (ZIPPED[:-4] + b"\1\0\0\0", "damaged gzip stream"),
    "zip bit flipped": (RANDOM[:9000] + bytes([RANDOM[9000] ^ 8]) + RANDOM[9001:], "damaged gzip stream|truncated|bytes"),
    "zip garbage behind": (ZIPPED + b"garbage at the end", "damaged gzip stream"),
    "zip of a zip": (gzip.compress(ZIPPED), "compressed twice"),
    "zip too long": (gzip.compress(GOOD + b"\0"), "more bytes follow"),
    "cut": (GOOD[:-1], f"truncated.*{len(GOOD) - 1} of {len(GOOD)} bytes"),
    "header only": (GOOD[:352], "truncated"),
    "half a header": (GOOD[:100], "100 of 348 bytes of the header"),
    "too long": (GOOD + b"\0\0", "2 bytes follow"),
    "HTML": (b"<!DOCTYPE html><html><body>404 not found</body></html>" * 20, "text, not NIfTI"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git-lfs pointer"),
    "zip archive": (b"PK\x03\x04" + bytes(400), "zip archive"),
    "DICOM": (bytes(128) + b"DICM" + bytes(400), "DICOM"),
    "noise": (np.random.default_rng(3).bytes(2000), "not a NIfTI file"),
    "magic destroyed": (raw_file(magic=b"xyz"), "mark of NIfTI"),
    "sizeof_hdr destroyed": (raw_file(sizeof_hdr=0), "not a NIfTI file"),
    "hdr/img pair": (raw_file(magic=b"ni1"), "pair"),
    "terabytes": (raw_file(dim=dims(3, 32767, 32767, 32767)), "claim 65530 GiB"),
    "gigabytes": (raw_file(dim=dims(3, 1000, 1000, 1000)), "truncated"),
    "negative dimension": (raw_file(dim=dims(3, 5, -6, 7)), "impossible shape 5x-6x7"),
    "zero dimension": (raw_file(dim=dims(3, 5, 0, 7)), "impossible shape 5x0x7"),
    "no dimensions": (raw_file(dim=dims(0, 5, 6, 7)), "0 dimensions"),
    "nine dimensions": (raw_file(dim=dims(9, 5, 6, 7)), "9 dimensions"),
    "2-D": (raw_file(dim=dims(2, 5, 42)), "2-D image of shape 5x42"),
    "5-D": (raw_file(dim=[5, 5, 3, 7, 1, 2, 1, 1]), "holds 2 volumes"),
    "two axes more": (raw_file(dim=[5, 5, 3, 1, 7, 2, 1, 1]), "5-D image"),
    "unknown type": (raw_file(datatype=77), r"not known \(code 77\)"),
    "complex": (raw_file(datatype=32), "complex64"),
    "RGB": (raw_file(datatype=128), "RGB"),
    "offset behind the end": (raw_file(vox_offset=100000), "behind the end"),
    "offset in the header": (raw_file(vox_offset=100), "inside the header"),
    "offset NaN": (raw_file(vox_offset=np.nan), "inside the header"),
    "voxel size 0": (raw_file(pixdim=pixdim(0, 1, 1)), "voxel size 0 x 1 x 1"),
    "voxel size NaN": (raw_file(pixdim=pixdim(np.nan, 1, 1)), "voxel size nan"),
    "affine NaN": (raw_file(srow_x=[np.nan, 0, 0, 0]), "affine"),
    "affine singular": (raw_file(srow_x=[0, 0, 0, 0]), "affine.*singular"),
    "sheared": (raw_file(qform_code=0, srow_x=[-1.5, 0.4, 0, 0]), "sheared: two axes meet at 78.7 degrees"),
    "slope infinite": (raw_file(scl_slope=np.inf), "scale factor inf"),
    "slope NaN": (raw_file(scl_slope=np.nan), "scale factor nan"),
    "intercept infinite": (raw_file(scl_inter=np.inf), "intercept inf"),
    "1000 mm": (raw_file(affine=np.diag([1000.0, 1000, 1000, 1])), "implausible voxel size 1000 x 1000 x 1000 mm"),
    "0.001 mm": (raw_file(affine=np.diag([0.001, 0.001, 0.001, 1])), "implausible voxel size 0.001"),
    "metres that are mm": (raw_file(xyzt_units=1), r"implausible.*unit metre"),
    "unknown unit": (raw_file(xyzt_units=5), "unknown unit"),
    "left against right": (raw_file(srow_x=[1.5, 0, 0, 0]), "sform says RPS and qform says LPS"),
    "some NaN": (raw_file(np.where(voxels() < 3, np.nan, voxels()).astype("f4")), r"\d+ NaN and 0 infinite of 210 voxels"),
    "some inf": (raw_file(np.where(voxels() < 3, np.inf, voxels()).astype("f4")), r"0 NaN and \d+ infinite"),
    "all NaN": (raw_file(np.full(SHAPE, np.nan, "f4")), "210 NaN"),
    "float64 too large": (raw_file(voxels("f8") * 1e300), "beyond single precision"),
}


@pytest.mark.parametrize("fault", DAMAGED)
@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
def test_damaged_file_is_refused_with_file_reason_and_remedy(tmp_path, fault, name):
    content, reason = DAMAGED[fault]
    path = put(tmp_path, content, name)
    with pytest.raises(FileError, match=reason) as caught:
        read_volume(path)
    assert caught.value.file == str(path)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@given(position=st.integers(0, 351), value=st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_any_byte_of_the_header_may_be_wrong(tmp_path_factory, position, value):
    """Whatever byte is changed, the answer is a volume or one of our errors: no other exception, no warning."""
    content = bytearray(GOOD)
    content[position] = value
    path = put(tmp_path_factory.getbasetemp(), bytes(content), "fuzzed.nii")
    try:
        volume = read_volume(path)
    except FileError:
        return
    assert np.isfinite(volume.voxels).all()
    assert np.isfinite(volume.affine).all()


@given(cut=st.integers(0, len(ZIPPED) - 1))
@settings(max_examples=100, deadline=None)
def test_no_cut_goes_unnoticed(tmp_path_factory, cut):
    path = put(tmp_path_factory.getbasetemp(), ZIPPED[:cut], "cut.nii.gz")
    with pytest.raises(FileError):
        read_volume(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "dangling.nii.gz").symlink_to(tmp_path / "nothing")
    for name, reason in {"pipe": "pipe", "folder": "a folder", "dangling": "link to a file", "absent": "no such file"}.items():
        with pytest.raises(FileError, match=reason):
            read_volume(tmp_path / f"{name}.nii.gz")
    with pytest.raises(FileError, match="device"):
        read_volume(Path("/dev/zero"))


def test_link_to_a_file_is_followed(tmp_path):
    put(tmp_path, GOOD, "real.nii")
    (tmp_path / "link.nii").symlink_to("real.nii")
    assert read_volume(tmp_path / "link.nii").shape == SHAPE


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_unreadable_file_is_named(tmp_path):
    path = put(tmp_path, GOOD)
    path.chmod(0)
    with pytest.raises(FileError, match="permission denied"):
        read_volume(path)


def test_twins_are_ambiguous(tmp_path):
    for content, name in ((GOOD, "t1.nii"), (ZIPPED, "t1.nii.gz")):
        put(tmp_path, content, name)
    for name in ("t1.nii", "t1.nii.gz"):
        with pytest.raises(FileError, match="ambiguous"):
            read_volume(tmp_path / name)


def test_gzip_bomb_is_refused_within_little_memory(tmp_path):
    """A header of 210 voxels before 300 MB of zeros: refused without unpacking them."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = packer.compress(GOOD) + b"".join(packer.compress(bytes(10**7)) for _ in range(30)) + packer.flush()
    path = put(tmp_path, bomb, "bomb.nii.gz")
    tracemalloc.start()
    with pytest.raises(FileError, match="more bytes follow"):
        read_volume(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


# --------------------------------------------------------------------------- odd but valid


def permuted(order, flips):
    """The same image stored along other axes: data and affine turned together, by plain indexing."""
    data, affine = voxels().transpose(order), LPS[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            data = np.flip(data, axis)
            affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
            affine[:3, axis] *= -1
    return data, affine


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_48_orientations_are_one_volume_and_go_back_where_they_came_from(tmp_path, order, flips):
    data, affine = permuted(order, flips)
    volume = read_volume(put(tmp_path, raw_file(data, affine)))
    np.testing.assert_array_equal(volume.voxels, voxels()[::-1, ::-1])  # LPS -> RAS
    np.testing.assert_allclose(volume.affine, [[1.5, 0, 0, 4], [0, 2, 0, 10], [0, 0, 3, -5], [0, 0, 0, 1]], atol=1e-6)
    assert volume.spacing_mm == pytest.approx((1.5, 2, 3))
    write_volume(tmp_path / "out.nii.gz", volume, dtype=np.int16)
    written = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), data)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)


def oblique():
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = LPS.copy()
    affine[:3, :3] = turn @ LPS[:3, :3]
    return affine


def scaled():
    content = bytearray(raw_file(scl_slope=0.5, scl_inter=-3))
    return bytes(content), voxels() * 0.5 - 3


def big_endian():
    image = nibabel.Nifti1Image(voxels(), LPS).as_reoriented([[0, 1], [1, 1], [2, 1]])
    header = image.header.as_byteswapped(">")
    swapped = nibabel.Nifti1Image(voxels().astype(">i2"), LPS, header)
    assert swapped.header.endianness == ">"
    return swapped.to_bytes()


def with_extension():
    image = nibabel.Nifti1Image(voxels(), LPS)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"as some scanners write it"))
    return image.to_bytes()


def members():
    """Several gzip members one after the other, as bgzip and pigz write."""
    return b"".join(gzip.compress(GOOD[i : i + 100]) for i in range(0, len(GOOD), 100)) + bytes(512)


VALID = {
    "plain": (GOOD, voxels()),
    "compressed": (ZIPPED, voxels()),
    "many gzip members and padding": (members(), voxels()),
    "NIfTI-2": (raw_file(kind=nibabel.Nifti2Image), voxels()),
    "big-endian": (big_endian(), voxels()),
    "extension": (with_extension(), voxels()),
    "float64": (raw_file(voxels("f8")), voxels()),
    "uint8": (raw_file(voxels("u1")), voxels()),
    "int64": (raw_file(voxels("i8")), voxels()),
    "trailing axis of 1": (raw_file(voxels()[..., None, None]), voxels()),
    "slope and intercept": scaled(),
    "slope 0 means none": (raw_file(scl_slope=0, scl_inter=7), voxels()),
    "oblique": (raw_file(affine=oblique()), voxels()),
    "only qform": (raw_file(sform_code=0), voxels()),
    "only sform": (raw_file(qform_code=0), voxels()),
    "affine noise": (raw_file(srow_x=[-1.50001, 1e-5, 0, 10]), voxels()),
}


@pytest.mark.parametrize("kind", VALID)
@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
def test_odd_but_valid_files_give_the_same_volume(tmp_path, kind, name):
    """Content decides, not the extension; nibabel's reading is the oracle for the affine."""
    content, expected = VALID[kind]
    volume = read_volume(put(tmp_path, content, name))
    assert volume.voxels.dtype == np.float32
    assert volume.voxels.flags.c_contiguous
    np.testing.assert_allclose(volume.voxels, expected[::-1, ::-1])
    assert volume.native is not None
    assert volume.native.shape == SHAPE
    assert volume.native.notes == ()
    if kind not in ("many gzip members and padding", "compressed"):
        oracle = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(content)) if kind != "NIfTI-2" else None
        if oracle is not None:
            np.testing.assert_allclose(volume.affine, oracle.affine, atol=1e-6)


def test_units_are_converted(tmp_path):
    small = LPS.copy()
    small[:3] /= 1000
    in_metres = read_volume(put(tmp_path, raw_file(affine=small, xyzt_units=1), "metre.nii"))
    large = LPS.copy()
    large[:3] *= 1000
    in_microns = read_volume(put(tmp_path, raw_file(affine=large, xyzt_units=3), "micron.nii"))
    plain = read_volume(put(tmp_path, GOOD, "mm.nii"))
    for volume in (in_metres, in_microns):
        np.testing.assert_allclose(volume.affine, plain.affine, rtol=1e-5)
        assert "converted to mm" in volume.native.notes[0]


def test_unknown_orientation_and_rival_transforms_are_noted(tmp_path):
    unknown = read_volume(put(tmp_path, raw_file(qform_code=0, sform_code=0), "a.nii"))
    assert "orientation unknown" in unknown.native.notes[0]
    shifted = read_volume(put(tmp_path, raw_file(srow_x=[-1.5, 0, 0, 14]), "b.nii"))
    assert shifted.native.notes == ("sform and qform lie up to 4.00 mm apart, sform used",)
    assert shifted.affine[0, 3] == pytest.approx(14 - 4 * 1.5)


def test_what_a_network_made_is_noted(tmp_path):
    made = read_volume(put(tmp_path, raw_file(descrip=b"SYNTHETIC mr by modistill ct2mr"), "mr.nii"))
    assert made.native.notes == ("no image of a scanner: SYNTHETIC mr by modistill ct2mr",)


def test_a_channel_of_a_4d_file(tmp_path):
    data = np.stack([voxels() + 100 * channel for channel in range(4)], axis=-1)
    path = put(tmp_path, gzip.compress(raw_file(data)), "four.nii.gz")
    with pytest.raises(FileError, match="holds 4 volumes"):
        read_volume(path)
    with pytest.raises(FileError, match="no channel 4"):
        read_volume(path, channel=4)
    first, third = read_volumes(path, [0, 2])
    np.testing.assert_array_equal(third.voxels, first.voxels + 200)
    assert (third.native.channel, third.native.shape) == (2, SHAPE)


# --------------------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_labels_are_whole_numbers_whatever_they_are_stored_as(tmp_path, dtype):
    labels = (voxels() % 5).astype(dtype)
    volume = read_labels(put(tmp_path, raw_file(labels)))
    assert volume.voxels.dtype == np.int32
    np.testing.assert_array_equal(volume.voxels, labels[::-1, ::-1])


def test_labels_with_a_stored_scale_factor_do_not_drift(tmp_path):
    volume = read_labels(put(tmp_path, raw_file((voxels() % 5).astype("i2") * 255, scl_slope=1 / 255)))
    np.testing.assert_array_equal(np.unique(volume.voxels), np.arange(5))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([0, 1, 1.5, 0.25]), "2 voxels .* fractions such as"),
        (np.array([0, 1, np.nan, 2]), "1 voxels .* NaN"),
        (np.array([0, 1, -np.inf, 2]), "infinite"),
        (np.array([0, 1, 1e12, 2]), "label values from 0 to 1e"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, values, reason):
    data = np.zeros(SHAPE)
    data[0, 0, :4] = values
    path = put(tmp_path, raw_file(data), "seg.nii")
    with pytest.raises(LabelError, match=reason) as caught:
        read_labels(path)
    assert caught.value.file == str(path)


# --------------------------------------------------------------------------- writing


def test_written_header_is_complete_and_bytes_are_reproducible(tmp_path):
    volume = Volume(voxels("u1"), LPS)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, volume, dtype=np.uint8)
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert (header["qform_code"], header["sform_code"], header.get_xyzt_units()[0]) == (1, 1, "mm")
    assert header.get_data_dtype() == np.uint8
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-5)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_values_are_never_cast_in_silence(tmp_path):
    for bad in (voxels("f4") + 0.5, voxels("i2") - 50, voxels("i2") + 1000, np.full(SHAPE, np.nan)):
        with pytest.raises(FileError):
            write_volume(tmp_path / "seg.nii.gz", Volume(bad), dtype=np.uint8)
    with pytest.raises(FileError, match="not finite"):
        write_volume(tmp_path / "map.nii.gz", Volume(np.full(SHAPE, np.inf)), dtype=np.float32)
    with pytest.raises(FileError, match="not a name"):
        write_volume(tmp_path / "seg.mha", Volume(voxels()), dtype=np.uint8)
    assert not list(tmp_path.iterdir())


def test_a_volume_that_left_its_grid_is_not_written_onto_it(tmp_path):
    volume = read_volume(put(tmp_path, GOOD))
    cropped = Volume(volume.voxels[1:], volume.affine, volume.native)
    moved = volume.affine.copy()
    moved[0, 3] += 1
    for stray in (cropped, Volume(volume.voxels, moved, volume.native)):
        with pytest.raises(GeometryError, match="no longer lies on the grid"):
            write_volume(tmp_path / "out.nii", stray, dtype=np.float32)


def test_full_disk_leaves_the_earlier_file_intact(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    path = tmp_path / "seg.nii.gz"
    write_volume(path, Volume(voxels("u1")), dtype=np.uint8)
    before = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modistill.data.nifti._put", lambda place, content: Path("/dev/full").write_bytes(content))
        with pytest.raises(FileError, match="No space left"):
            write_volume(path, Volume(voxels("u1") + 1), dtype=np.uint8)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_reads_back_differently_is_not_kept(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modistill.data.nifti._put", lambda place, content: place.write_bytes(raw_file()))
        with pytest.raises(FileError, match="read back"):
            write_volume(tmp_path / "seg.nii", Volume(voxels("u1") + 1, LPS), dtype=np.uint8)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- real data


def test_real_patient_equals_nibabel():
    folder = Path(__file__).parents[3] / "shared" / "data" / "brats2021" / "BraTS2021_00014"
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder}")
    path = folder / "BraTS2021_00014_t1ce.nii.gz"
    oracle = nibabel.as_closest_canonical(nibabel.load(path))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, np.asanyarray(oracle.dataobj))
    np.testing.assert_array_equal(volume.affine, oracle.affine)


def test_header_struct_is_what_the_standard_says():
    """The fuzzing above rests on this: sizeof_hdr at byte 0, dim at 40, datatype at 70, magic at 344."""
    assert struct.unpack_from("<i", GOOD, 0) == (348,)
    assert struct.unpack_from("<4h", GOOD, 40) == (3, *SHAPE)
    assert struct.unpack_from("<h", GOOD, 70) == (4,)
    assert GOOD[344:348] == b"n+1\0"
