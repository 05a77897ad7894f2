"""What a NIfTI header says, and whether it can be true. Nothing is repaired in silence."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.errors import FileError

__all__ = ["HEADER_BYTES", "SYNTHETIC", "Header", "axis_codes", "parse_header"]

HEADER_BYTES = 540  # of NIfTI-2, the longer of the two
SYNTHETIC = "SYNTHETIC"  # how the description of an image begins that a network made, and no scanner
_SMALLEST_MM, _LARGEST_MM = 0.01, 100.0
_LARGEST_COSINE = 0.01  # between two axes: half a degree from rectangular
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # spatial part of xyzt_units: unknown, metre, mm, micron
_UNIT_NAMES = {0: "unit not stated", 1: "unit metre", 2: "unit mm", 3: "unit micron"}
_REFUSED_TYPES = {0: "unknown", 1: "binary", 32: "complex64", 128: "RGB colour", 1536: "float128", 1792: "complex128"}
_REFUSED_TYPES |= {2048: "complex256", 2304: "RGBA colour"}
_DAMAGED = "the file is damaged, or is no NIfTI: fetch or export it again"
_REPAIR = "repair the header, or export the image again"


@dataclass(frozen=True)
class Header:
    """The part of a header that matters here, checked.

    Attributes:
        shape: voxels along the three axes of the file.
        volumes: how many volumes the file holds, one after the other.
        dtype: stored type, with byte order.
        offset: byte of the first voxel.
        slope: value = stored * slope + intercept.
        intercept: see `slope`.
        affine: (4, 4) voxel -> mm RAS+.
        notes: what is odd but was accepted, one sentence each.
        synthetic: whether the description says that a network made the image.
    """

    shape: tuple[int, int, int]
    volumes: int
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    synthetic: bool = False

    @property
    def bytes_of_voxels(self) -> int:
        """Size of all voxels in the (decompressed) file."""
        return prod(self.shape) * self.volumes * self.dtype.itemsize


def parse_header(start: bytes | bytearray) -> Header:
    """Parse and check the first `HEADER_BYTES` bytes of a (decompressed) file.

    Raises:
        FileError: not NIfTI, damaged, or outside of what an image of a patient can be.
    """
    with np.errstate(all="ignore"):  # numbers that are none are refused below, by name
        fields = _fields(bytes(start))
        shape, volumes = _dimensions(fields)
        affine, notes = _affine(fields, shape)
        slope, intercept = _scaling(fields)
        description = bytes(fields["descrip"]).decode("ascii", "replace").strip("\0 ")
        if synthetic := description.startswith(SYNTHETIC):
            notes += (f"no image of a scanner: {description}",)
        return Header(shape, volumes, _stored_type(fields), _offset(fields), slope, intercept, affine, notes, synthetic)


def axis_codes(affine: NDArray[np.float64]) -> str:
    """Where the three axes of a file run to, each by the closest direction of the patient.

    Example:
        >>> axis_codes(np.diag([-1.0, -1.0, 2.0, 1.0]))
        'LPS'
    """
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(affine))


def _fields(start: bytes) -> Any:
    """The header as nibabel's structure, once size and magic say that it is one."""
    from nibabel import Nifti1Header, Nifti2Header

    _refuse_other_content(start)
    sizes = {int.from_bytes(start[:4], "little"): "<", int.from_bytes(start[:4], "big"): ">"}
    for size, magic, kind in ((348, start[344:348], Nifti1Header), (540, start[4:8], Nifti2Header)):
        if size not in sizes:
            continue
        if len(start) < size:
            raise FileError(f"truncated, {len(start)} of {size} bytes of the header", remedy=_DAMAGED)
        if magic[:2] == b"ni":
            raise FileError("header of a .hdr/.img pair", remedy="convert it to one .nii.gz file")
        if magic not in (b"n+1\0", b"n+2\0"):
            raise FileError("the mark of NIfTI in its header is destroyed", remedy=_DAMAGED)
        return kind(start[:size], endianness=sizes[size], check=False)
    raise FileError("not a NIfTI file" if len(start) >= 348 else f"only {len(start)} bytes, no NIfTI header", remedy=_DAMAGED)


def _refuse_other_content(start: bytes) -> None:
    """Name what often lies under an image's name and is none."""
    known = {
        b"version https://git-lfs": ("a git-lfs pointer, not the image", "run: git lfs pull"),
        b"PK\x03\x04": ("a zip archive, not NIfTI", "unpack it"),
        b"\x1f\x8b": ("compressed twice", "decompress it once"),
        b"NRRD": ("an NRRD image, not NIfTI", "convert it to .nii.gz"),
    }
    for mark, (what, remedy) in known.items():
        if start.startswith(mark):
            raise FileError(what, remedy=remedy)
    if start[128:132] == b"DICM":
        raise FileError("a DICOM file, not NIfTI", remedy="convert the series to .nii.gz")
    beginning = start[:128].lstrip()
    if beginning and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in beginning):
        raise FileError("text, not NIfTI: a failed download?", remedy="fetch the file again")


def _dimensions(fields: Any) -> tuple[tuple[int, int, int], int]:
    dim = [int(n) for n in fields["dim"]]
    if not 1 <= dim[0] <= 7:
        raise FileError(f"{dim[0]} dimensions", remedy=_REPAIR)
    sizes = dim[1 : dim[0] + 1]
    text = "x".join(map(str, sizes))
    if min(sizes) <= 0:
        raise FileError(f"impossible shape {text}", remedy=_REPAIR)
    if len(sizes) < 3:
        raise FileError(
            f"{len(sizes)}-D image of shape {text} where a volume is meant", remedy="stack the slices into a volume"
        )
    if sum(size > 1 for size in sizes[3:]) > 1:
        raise FileError(f"{len(sizes)}-D image of shape {text} where a volume is meant", remedy="split it into volumes")
    return (sizes[0], sizes[1], sizes[2]), prod(sizes[3:])


def _stored_type(fields: Any) -> np.dtype[Any]:
    code = int(fields["datatype"])
    names = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
    if code not in names:
        raise FileError(
            f"data type {_REFUSED_TYPES.get(code, 'not known')} (code {code})", remedy="export the image as integers or floats"
        )
    stored: np.dtype[Any] = np.dtype(fields.endianness + names[code])
    return stored


def _offset(fields: Any) -> int:
    """Byte of the first voxel. 0 stands for the end of the header, as files from some programs have it."""
    least = int(fields["sizeof_hdr"]) + 4
    offset = float(fields["vox_offset"])
    if not np.isfinite(offset) or offset != int(offset) or (offset != 0 and offset < least):
        raise FileError(f"voxels are said to begin at byte {offset:g}, inside the header", remedy=_REPAIR)
    return int(offset) or least


def _scaling(fields: Any) -> tuple[float, float]:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if not np.isfinite([slope, intercept]).all():
        raise FileError(f"scale factor {slope:g} and intercept {intercept:g} in the header", remedy=_REPAIR)
    return (slope, intercept) if slope != 0 else (1.0, 0.0)  # slope 0 means: stored as they are


def _affine(fields: Any, shape: tuple[int, int, int]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The affine in mm: sform before qform before voxel sizes alone, as the standard has it."""
    pixdim = np.asarray(fields["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        raise FileError(f"voxel size {_by(pixdim)} in the header", remedy=_REPAIR)
    code = int(fields["xyzt_units"]) & 7
    if code not in _MM_PER_UNIT:
        raise FileError(f"unknown unit of length (code {code})", remedy=_REPAIR)
    sform, qform = (_transform(fields, name, code) for name in ("sform", "qform"))
    chosen = next((one for one in (sform, qform) if one is not None), None)
    notes: list[str] = []
    if chosen is None:
        chosen = _in_mm(np.asarray(fields.get_base_affine(), dtype=np.float64), code)
        notes.append("orientation unknown: neither qform nor sform is set, axes taken as they are by convention (L-A-S)")
    if sform is not None and qform is not None:
        notes += _rivals(sform, qform, shape)
    if _MM_PER_UNIT[code] != 1.0:
        notes.append(f"converted to mm ({_UNIT_NAMES[code]} in the header)")
    return chosen, tuple(notes)


def _transform(fields: Any, name: str, unit: int) -> NDArray[np.float64] | None:
    """The sform or qform matrix in mm, None where its code says that it is not set."""
    from nibabel.spatialimages import HeaderDataError

    if int(fields[f"{name}_code"]) <= 0:
        return None
    try:
        matrix = np.asarray(getattr(fields, f"get_{name}")(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        raise FileError(f"the {name} in the header is no rotation", remedy=_REPAIR) from None
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
        raise FileError(f"the affine ({name}) is singular or not finite", remedy=_REPAIR)
    return _in_mm(matrix, unit)


def _in_mm(matrix: NDArray[np.float64], unit: int) -> NDArray[np.float64]:
    """The matrix in mm, if voxels of such a size and such angles between axes can be meant."""
    affine = matrix.copy()
    affine[:3] *= _MM_PER_UNIT[unit]
    axes = affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    if (sizes < _SMALLEST_MM).any() or (sizes > _LARGEST_MM).any():
        raise FileError(f"implausible voxel size {_by(sizes)} mm ({_UNIT_NAMES[unit]})", remedy=_REPAIR)
    cosine = float(np.abs(np.triu((axes / sizes).T @ (axes / sizes), k=1)).max())
    if cosine > _LARGEST_COSINE:
        angle = np.degrees(np.arccos(min(1.0, cosine)))
        raise FileError(f"sheared: two axes meet at {angle:.1f} degrees", remedy="resample it onto a rectangular grid")
    return affine


def _rivals(sform: NDArray[np.float64], qform: NDArray[np.float64], shape: tuple[int, int, int]) -> list[str]:
    """Refuse two transforms that name the axes differently: left and right are then a guess. Note lesser differences."""
    names = [axis_codes(matrix) for matrix in (sform, qform)]
    if names[0] != names[1]:
        raise FileError(f"sform says {names[0]} and qform says {names[1]}", remedy="remove the wrong one from the header")
    corners = np.array([[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)])
    apart = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
    return [f"sform and qform lie up to {apart:.2f} mm apart, sform used"] if apart > 0.1 else []


def _by(sizes: NDArray[np.float64]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
