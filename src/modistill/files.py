"""The one guarded writer: a file is there complete, or it is not there.

Nothing else in the package writes. A file is written beside its final place, flushed to the disk, read back and only then
renamed; whoever looks sees the old content or the new one, never a part. `run_lock` keeps two processes out of one folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modistill.errors import FileError, ModistillError

__all__ = [
    "atomic_folder",
    "parse_yaml",
    "read_json",
    "require_writable",
    "run_lock",
    "sha256",
    "write_bytes",
    "write_file",
    "write_json",
    "write_text",
]


_DEEPEST = 50  # levels of a YAML text; reading takes quadratic time in them


def sha256(path: Path) -> str:
    """SHA-256 digest of a file, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_file(path: Path, write: Callable[[Path], None], check: Callable[[Path], None] | None = None) -> None:
    """Write one file so that it is complete under its name, or not there at all.

    Args:
        path: final place; missing parent folders are made.
        write: writes the content to the path it is given. That path lies in the final folder and keeps the file's suffixes.
        check: reads the written file back and raises if it does not hold what it should.

    Raises:
        FileError: the disk is full, the folder cannot be written, or the file read back differs. An earlier file under
            `path` is then intact, and nothing else is left behind.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = "".join(path.suffixes[-2:])
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=f".part{suffix}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        _flush(temporary)
        if check is not None:
            check(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise FileError(
            f"cannot be written: {error.strerror or error}", file=path, remedy="free disk space or choose another folder"
        ) from error
    except ModistillError as error:
        raise FileError(f"read back after writing, it differs: {error.reason}", file=path, remedy="check the disk") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Refuse, before hours of work, a file that could not be written after them. Makes nothing.

    Raises:
        FileError: a folder is in the way, what should be its folder is none, or that may not be written.
    """
    path = Path(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise FileError("is a folder", file=path, remedy="give the name of a file")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        fault = "may not be written" if folder.is_dir() else "is no folder"
        raise FileError(f"cannot be written: {folder} {fault}", file=path, remedy="choose another place")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content`, read it back and compare, rename into place (see `write_file`)."""

    def check(written: Path) -> None:
        if written.read_bytes() != content:
            raise FileError(f"{written.stat().st_size} bytes read, {len(content)} written")

    write_file(path, lambda place: _write_all(place, content), check)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 (see `write_file`)."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON (see `write_file`). Values that are not finite are refused: JSON has no NaN."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a damaged or absent file is a `FileError` that names it."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}", file=path) from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"damaged JSON: {error}", file=path, remedy="restore or rewrite the file") from error


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text: no tags, which make objects, and no aliases, of which ten lines can mean gigabytes.

    Raises:
        ValueError: the text is no such YAML, or is nested more than 50 levels deep.
    """
    import yaml

    depth = 0
    try:
        for token in yaml.scan(text, yaml.SafeLoader):
            kind = type(token).__name__  # Flow or Block, Sequence or Mapping, Start or End; BlockEnd
            depth += kind.endswith("StartToken") - kind.endswith("EndToken")
            if isinstance(token, yaml.AliasToken):
                raise ValueError("aliases (*name) are not allowed")
            if depth > _DEEPEST:
                raise ValueError("nested too deeply")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that gets its name only when its content is complete.

    Yields:
        A temporary folder beside `path`; renamed to `path` at the end, removed if anything is raised.

    Raises:
        FileError: `path` exists already.
    """
    import shutil

    path = Path(path)
    if path.exists():
        raise FileError("exists already", file=path, remedy="choose another folder or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.part.", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise FileError(f"cannot be written: {error.strerror or error}", file=path, remedy="free disk space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; a second process is refused at once (and the lock dies with its holder).

    Raises:
        FileError: another process holds the folder, or it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("w")
    except OSError as error:
        raise FileError(f"cannot be written: {error.strerror or error}", file=folder, remedy="choose another folder") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FileError("in use by another process", file=folder, remedy="wait for it or choose another folder") from error
        yield


def _write_all(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
