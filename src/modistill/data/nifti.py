"""The one guarded reader and writer of images: nothing else in the package opens one.

A file is believed only after it was checked: a regular file, NIfTI by content rather than by name, a header that can be true,
exactly as many bytes as the header says (a gzip stream is read to its end and its checksum compared), finite values. What is
wrong becomes one `FileError` with reason and remedy; what is odd but usable is kept in `Native.notes`, and `inspect` shows it.

The format: NIfTI-1.1 and NIfTI-2, https://nifti.nimh.nih.gov.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from modistill.data.header import HEADER_BYTES, SYNTHETIC, Header, parse_header
from modistill.data.volume import Native, Volume, grid_distance_mm
from modistill.errors import FileError, GeometryError, LabelError, ModistillError
from modistill.files import write_file

__all__ = ["read_labels", "read_volume", "read_volumes", "write_volume"]

_LARGEST_BYTES = 4 << 30  # of voxels in one file: a whole-body CT has 1 GiB
_LARGEST_RATIO = 1032  # deflate cannot compress better than this, so a small file cannot hold a large volume
_PIECE = 1 << 20
_FETCH = "fetch or export the file again"


def read_volume(path: Path, *, channel: int | None = None) -> Volume:
    """Read one image.

    Args:
        path: a `.nii` or `.nii.gz` file (told apart by content).
        channel: index along the fourth axis of a 4-D file, from 0; needed if there is more than one.

    Returns:
        (D, H, W) float32 voxels, finite, C-contiguous, on the canonical axes closest to the file's own, kept in `native`;
        `synthetic` where the header says so.

    Raises:
        FileError: the file is absent, damaged, not NIfTI, or holds what an image cannot hold; with reason and remedy.
    """
    return read_volumes(path, [channel])[0]


def read_volumes(path: Path, channels: Sequence[int | None]) -> list[Volume]:
    """Several channels of one file, which is opened and decompressed once (see `read_volume`)."""
    path = Path(path)
    with _naming(path):
        content = _read(path)
        return [_volume(path, content, channel, _intensities) for channel in channels]


def read_labels(path: Path) -> Volume:
    """Read a label map.

    Returns:
        (D, H, W) int32 voxels on canonical axes; values stored as floats or with a scale factor are accepted if they are whole.

    Raises:
        FileError: as for `read_volume`.
        LabelError: fractions, or values that are not finite or beyond 32 bits; with how many voxels hold them.
    """
    path = Path(path)
    with _naming(path):
        return _volume(path, _read(path), None, _whole_numbers)


def write_volume(path: Path, volume: Volume, *, dtype: DTypeLike, description: str = "") -> None:
    """Write a volume on the grid of the file it came from (`volume.native`), or on its own canonical grid if it was made.

    The file is read back and compared before it gets its name. Both qform and sform are set, the unit is mm.

    Args:
        path: final name, `.nii` or `.nii.gz`.
        volume: (D, H, W) voxels on canonical axes.
        dtype: on disk; `uint8` for label maps, `float32` for maps.
        description: for the header (`descrip`), which keeps 79 plain characters; of a synthetic image it begins by saying so.

    Raises:
        FileError: the name is no NIfTI name, values do not fit `dtype` exactly (integers) or are not finite, the disk is full.
        GeometryError: the volume no longer lies on the grid of its file.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise FileError("not a name for an image", file=path, remedy="end it in .nii.gz or .nii")
    with _naming(path):
        voxels, affine = _on_native_axes(volume)
        voxels = _exactly(voxels, dtype)
        if volume.synthetic and not description.startswith(SYNTHETIC):
            description = f"{SYNTHETIC} {description}"
        content = _encode(voxels, affine, description)
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=3, mtime=0)
    write_file(path, lambda place: _put(place, content), lambda place: _compare(place, voxels, affine))


# --------------------------------------------------------------------------- the file


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors raised inside name this file."""
    try:
        yield
    except ModistillError as error:
        error.file = error.file or os.fspath(path)
        raise
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}", file=path) from error


@dataclass(frozen=True)
class _Content:
    """A file that was checked: its header, and the bytes from its beginning to the last voxel."""

    header: Header
    data: bytes | bytearray


def _read(path: Path) -> _Content:
    with _open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == 0:
            raise FileError("empty file (0 bytes)", remedy=_FETCH)
        start: bytes | bytearray = stream.read(HEADER_BYTES)
        zipped = start.startswith(b"\x1f\x8b")
        compressed = _whole(stream, size) if zipped else b""
        if zipped:
            start, ended = _inflate(compressed, HEADER_BYTES)
            if not ended and len(start) <= HEADER_BYTES:
                raise FileError("truncated in the header", remedy=_FETCH)
        header = parse_header(start[:HEADER_BYTES])
        expected = header.offset + header.bytes_of_voxels
        _refuse_impossible_size(header, size * _LARGEST_RATIO if zipped else size)
        if zipped:
            content, ended = _inflate(compressed, expected)
        else:
            stream.seek(0)
            content, ended = bytearray(stream.read(expected)), True
            if size > expected:
                raise FileError(f"{size - expected} bytes follow the last voxel of {expected}", remedy=_FETCH)
    if len(content) > expected:
        raise FileError(f"more bytes follow the last voxel of {expected}", remedy=_FETCH)
    if len(content) < expected:
        raise FileError(f"truncated, {len(content)} of {expected} bytes", remedy=_FETCH)
    if not ended:
        raise FileError("truncated, the end of the gzip stream with its checksum is missing", remedy=_FETCH)
    return _Content(header, content)


def _open_regular(path: Path) -> BinaryIO:
    """Open a regular file, and nothing that could block or that is ambiguous."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        dangling = path.is_symlink()
        raise FileError("link to a file that does not exist" if dangling else "no such file", remedy="check the path") from None
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe, socket or device"
        raise FileError(f"{what}, not a file", remedy="give an image file")
    twin = path.with_name(path.name.removesuffix(".gz") if path.name.endswith(".nii.gz") else path.name + ".gz")
    if path.name.endswith((".nii", ".nii.gz")) and twin.exists():
        raise FileError(f"ambiguous: {twin.name} lies beside it", remedy="keep one of the two")
    try:
        return cast(BinaryIO, os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb"))
    except PermissionError:
        raise FileError("permission denied", remedy="make the file readable") from None


def _whole(stream: BinaryIO, size: int) -> bytes:
    """The whole compressed file; memory is bounded by what a file may hold at all."""
    if size > _LARGEST_BYTES:
        raise FileError(f"{size / 2**30:.1f} GiB, more than an image may have", remedy="crop or split it")
    stream.seek(0)
    return stream.read()


def _refuse_impossible_size(header: Header, possible: int) -> None:
    """Refuse from the header alone what the file cannot hold, before memory is asked for."""
    needed = header.offset + header.bytes_of_voxels
    if header.offset > possible:
        raise FileError(f"voxels begin at byte {header.offset}, behind the end of the file", remedy=_FETCH)
    if needed > _LARGEST_BYTES:
        shape = "x".join(map(str, header.shape))
        raise FileError(f"{shape} voxels claim {needed / 2**30:.0f} GiB", remedy="the header is damaged, or crop the image")
    if needed > possible:
        raise FileError(f"truncated, at most {possible} of {needed} bytes", remedy=_FETCH)


def _inflate(stream: bytes, at_most: int) -> tuple[bytearray, bool]:
    """Decompress a gzip stream of any number of members, checksums included, to `at_most` + 1 bytes.

    Returns:
        The bytes, and whether the stream came to its proper end; it did not if it is cut, or goes on beyond `at_most`.

    Raises:
        FileError: the stream is damaged.
    """
    content, position = bytearray(), 0
    try:
        while True:
            member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            while not member.eof:
                piece = stream[position : position + _PIECE]
                out = member.decompress(piece, at_most + 1 - len(content))
                content += out
                position += len(piece) - len(member.unconsumed_tail) - len(member.unused_data)
                if len(content) > at_most or (not piece and not out):
                    return content, False
            if not stream[position : position + 8].strip(b"\0"):  # the end, or the padding of a tape
                return content, True
    except zlib.error as error:
        raise FileError(f"damaged gzip stream ({str(error).split(': ')[-1]})", remedy=_FETCH) from None


# --------------------------------------------------------------------------- voxels


def _volume(path: Path, content: _Content, channel: int | None, convert: Any) -> Volume:
    """One channel, converted and turned to canonical axes."""
    from nibabel import orientations

    header = content.header
    raw = _stored(content)[..., _chosen(channel, header.volumes)]
    turn = orientations.io_orientation(header.affine)
    with np.errstate(all="ignore"):  # NaN and overflow are refused by `convert`, with their count
        voxels = convert(orientations.apply_orientation(raw, turn), header)
    affine = header.affine @ orientations.inv_ornt_aff(turn, header.shape)
    native = Native(
        path, header.shape, header.affine, header.dtype, channel if header.volumes > 1 else None, notes=header.notes
    )
    return Volume(voxels, affine, native, header.synthetic)


def _stored(content: _Content) -> NDArray[Any]:
    """All volumes as they lie in the file: its axes, its type, the volumes along a fourth axis."""
    header = content.header
    flat: NDArray[Any] = np.frombuffer(content.data, dtype=header.dtype, offset=header.offset)
    return flat.reshape((*header.shape, header.volumes), order="F")


def _chosen(channel: int | None, volumes: int) -> int:
    if channel is None and volumes > 1:
        raise FileError(f"holds {volumes} volumes where one is meant", remedy="say which channel, or split the file")
    if channel is not None and not 0 <= channel < volumes:
        raise FileError(f"no channel {channel}: it holds {volumes}, counted from 0", remedy="choose another channel")
    return channel or 0


def _scaled(raw: NDArray[Any], header: Header) -> NDArray[Any]:
    """Stored numbers -> values: slope and intercept applied in double precision, where they change anything."""
    if header.slope == 1 and header.intercept == 0:
        return raw
    return raw.astype(np.float64) * header.slope + header.intercept


def _intensities(raw: NDArray[Any], header: Header) -> NDArray[np.float32]:
    values = _scaled(raw, header)
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            nan, inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
            raise FileError(f"{nan} NaN and {inf} infinite of {values.size} voxels", remedy="repair the image")
        if max(-low, high) > float(np.finfo(np.float32).max):
            raise FileError(f"values up to {max(-low, high):.3g} are beyond single precision", remedy="rescale the image")
    return np.ascontiguousarray(values, dtype=np.float32)


def _whole_numbers(raw: NDArray[Any], header: Header) -> NDArray[np.int32]:
    values = _scaled(raw, header)
    if values.dtype.kind == "f":
        unreal = int((~np.isfinite(values)).sum())
        if unreal:
            raise LabelError(f"{unreal} voxels of the label map are NaN or infinite", remedy="repair the label map")
        whole = np.rint(values)
        fractions = np.abs(values - whole) > 1e-3  # a stored scale factor such as 1/255 leaves whole numbers this near
        if fractions.any():
            raise LabelError(
                f"{int(fractions.sum())} voxels of the label map hold fractions such as {float(values[fractions][0]):g}",
                remedy="resample label maps with nearest neighbour",
            )
        values = whole
    low, high = float(values.min()), float(values.max())
    if max(-low, high) > np.iinfo(np.int32).max:
        raise LabelError(f"label values from {low:g} to {high:g}", remedy="this is no label map, or it is damaged")
    return np.ascontiguousarray(values, dtype=np.int32)


# --------------------------------------------------------------------------- writing


def _on_native_axes(volume: Volume) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Voxels and affine as they lie in the file the volume came from: axes permuted and flipped, nothing interpolated."""
    from nibabel import orientations

    native = volume.native
    if native is None:
        return volume.voxels, volume.affine
    turn = orientations.io_orientation(native.affine)
    canonical = native.affine @ orientations.inv_ornt_aff(turn, native.shape)
    shape = tuple(native.shape[int(axis)] for axis in np.argsort(turn[:, 0]))
    if volume.shape != shape or grid_distance_mm(Volume(volume.voxels, canonical), volume) > 1e-2:
        raise GeometryError("the volume no longer lies on the grid of its file", remedy="restore it to that grid, then write")
    back = orientations.ornt_transform(orientations.io_orientation(volume.affine), turn)
    return orientations.apply_orientation(volume.voxels, back), native.affine


def _exactly(voxels: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Cast without losing anything that counts: integers exactly, floats finite."""
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise FileError(f"{int((~np.isfinite(voxels)).sum())} voxels to be written are not finite")
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        outside = (voxels < limits.min) | (voxels > limits.max) | (voxels != np.rint(voxels))
        if outside.any():
            raise FileError(f"{int(outside.sum())} voxels such as {voxels[outside][0]} do not fit {dtype}")
    return voxels.astype(dtype)


def _encode(voxels: NDArray[Any], affine: NDArray[np.float64], description: str) -> bytes:
    import nibabel

    image = nibabel.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    return cast(bytes, image.to_bytes())


def _put(place: Path, content: bytes) -> None:
    with place.open("wb") as stream:
        stream.write(content)


def _compare(place: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Refuse a file that does not hold, read back, what was to be written."""
    with _naming(place):
        content = _read(place)
    if content.header.shape != voxels.shape or not np.array_equal(_stored(content)[..., 0], voxels):
        raise FileError("voxels differ")
    if grid_distance_mm(Volume(voxels, affine), Volume(voxels, content.header.affine)) > 1e-2:
        raise FileError("the affine differs")
