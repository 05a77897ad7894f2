"""From a path to cases: the layouts in which cohorts lie on disk.

| layout | how it is recognised |
|---|---|
| `table` | a `.csv` or `.json` file: one row a case, one column a modality |
| `nnunet` | `dataset.json` with `channel_names`, or files `CASE_0000.nii.gz` |
| `msd` | `dataset.json` with `modality`: one 4-D file a case |
| `bids` | folders `sub-*/[ses-*/]anat` |
| `folders` | anything else: `CASE/CASE_t1.nii.gz`, `CASE/CASE-t1n.nii.gz`, `CASE/t1.nii`, nested or flat |

A layout is a function that hands files to a `Gathering`. Nothing is opened here; what is odd becomes a `Fault`, and the other
cases stay usable.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modistill.data.cohort import CaseFiles, Cohort, Fault, ImageSource
from modistill.data.gathering import LABELS, Gathering, images_in, split_name, stem_of
from modistill.data.naming import conventions, modality_name
from modistill.errors import CaseError, FileError, ModistillError
from modistill.files import read_json

__all__ = ["CaseFiles", "Cohort", "Fault", "ImageSource", "case_from_files", "find_cases"]

_log = logging.getLogger(__name__)


def find_cases(path: Path, *, modalities: Mapping[str, str] | None = None) -> Cohort:
    """Find all cases under a path, in whatever known layout they lie. No image is opened.

    Args:
        path: a folder of cases, the folder of one case, or a table of paths.
        modalities: word in file names, channel or column names -> modality, for words that are not known anyway.

    Raises:
        FileError: no such path, a table or `dataset.json` that cannot be read.
        CaseError: there is nothing that looks like a case.
    """
    path = Path(path)
    if not path.exists():
        raise FileError("no such file or folder", file=path, remedy="check the path")
    gathering = Gathering(modalities or {})
    layout, gather = _recognise(path)
    _log.info("%s: layout %s", path, layout)
    gather(path, gathering)
    cases, faults = gathering.finish()
    if not cases and not faults:
        raise CaseError(
            "no NIfTI image found", file=path, remedy="give a folder of cases; convert DICOM series to .nii.gz first"
        )
    return Cohort(path, layout, cases, faults)


def case_from_files(files: Mapping[str, Path], *, labels: Path | None = None, id: str | None = None) -> CaseFiles:
    """A case made of single files, as given on the command line.

    Args:
        files: modality -> file.
        labels: reference label map.
        id: name of the case; by default what all file names begin with, or the name of their folder.

    Raises:
        CaseError: no file, or one modality under two names.

    Example:
        >>> case = case_from_files({"T1c": Path("in/p07_t1c.nii.gz"), "T2w": Path("in/p07_t2w.nii.gz")})
        >>> case.id, case.modalities
        ('p07', ('t1ce', 't2'))
    """
    images = {modality_name(name): ImageSource(Path(path)) for name, path in files.items()}
    if len(images) < len(files) or not files:
        raise CaseError(f"{len(files)} files for {len(images)} modalities", remedy="give one file for each modality")
    paths = [source.path for source in images.values()]
    beginnings = {split_name(path, {})[0] for path in paths}
    name = id or (beginnings.pop() if len(beginnings) == 1 else "") or paths[0].resolve().parent.name
    return CaseFiles(name, images, labels)


def _recognise(path: Path) -> tuple[str, Callable[[Path, Gathering], None]]:
    """Name and function of the layout of a path."""
    if path.is_file():
        if path.suffix.lower() in (".csv", ".json"):
            return "table", _table
        raise FileError("neither a folder nor a table", file=path, remedy="give a folder, a .csv or a .json file")
    described = _description(path)
    if described is not None:
        numbered = any(re.search(r"_\d{4}$", stem_of(file)) for folder in _subsets(path) for file in images_in(folder))
        return ("nnunet", _nnunet) if "channel_names" in described or numbered else ("msd", _msd)
    if any(path.glob("sub-*/anat")) or any(path.glob("sub-*/ses-*/anat")):
        return "bids", _bids
    return "folders", _folders


# --------------------------------------------------------------------------- folders: BraTS, flat, single case


def _folders(root: Path, found: Gathering) -> None:
    """Case folders at any depth; a folder with files of several cases is taken as flat."""
    tree = {folder: images_in(folder) for folder in _walk(root)}
    owners: dict[str, set[Path]] = {}
    for folder, images in tree.items():
        for path in images:
            owners.setdefault(split_name(path, found.words)[0], set()).add(folder)
    names = {folder.name for folder, images in tree.items() if images}
    # the same beginning in many folders (scan_t1, CT_image) says nothing about the case, unless a folder is called so
    idle = {prefix for prefix, folders in owners.items() if len(folders) > 1 and prefix not in names}
    parents = {folder.parent for folder, images in tree.items() if images and folder != root}
    recorded = _recorded(root)
    for folder, images in tree.items():
        if images:
            _folder(folder, images, names, idle, found, recorded or _recorded(folder))
        elif folder.parent in parents and not any(inner.parent == folder for inner in tree):
            found.fault(folder.name, folder, "no image in the case folder", "add the images or remove the folder")


def _walk(root: Path) -> Iterator[Path]:
    """All folders below `root`, linked ones too (cohorts are often put together of links); circles are not followed."""
    for name, folders, _ in os.walk(root, followlinks=True):
        place = Path(name)
        if place.is_symlink() and any(place.samefile(parent) for parent in place.parents):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place


def _folder(folder: Path, images: list[Path], names: set[str], idle: set[str], found: Gathering, recorded: str | None) -> None:
    """The files of one folder: its case is called as its files are, or as the folder if the files do not say or disagree."""
    own = Path(os.path.abspath(folder)).name
    split = [(path, *split_name(path, found.words)) for path in images]
    split = [(path, "" if prefix in idle else prefix, word) for path, prefix, word in split]
    prefixes = {prefix for _, prefix, word in split if found.sequence(word)} - {""}
    flat = len(prefixes) > 1 and not prefixes & {own, *names}
    for path, prefix, word in split:
        foreign = prefix not in ("", own) and (prefix in names or (len(prefixes) > 1 and not flat))
        case = prefix if prefix in prefixes and not foreign else own
        sequence = found.sequence(word)
        if sequence is None:
            remedy = f"declare it: --modality {word}=NAME"
            found.fault(case, path, f"not used: unknown sequence {word!r}", remedy, severity="warning")
        elif foreign:
            found.fault(own, path, f"named for another case, {prefix}", f"rename it to {own}_{word}, or move it")
        else:
            found.add(case, sequence, path, folder)
            found.hint(case, recorded or _named_like(word))


def _recorded(root: Path) -> str | None:
    """The convention that the record of a phantom cohort names, for its folder and for one of its cases."""
    for place in (root, root.parent):
        with contextlib.suppress(FileError):
            record = read_json(place / "phantom.json")
            named = record.get("convention") if isinstance(record, dict) else None
            if isinstance(named, str) and named in conventions:
                return named
    return None


def _named_like(word: str) -> str | None:
    """The BraTS edition whose file names use this word."""
    if word.lower() in ("t1n", "t1c", "t2w", "t2f"):
        return "brats2023"
    return "brats2021" if word.lower() in ("t1ce", "flair") else None


# --------------------------------------------------------------------------- dataset.json: MSD and nnU-Net


def _description(path: Path) -> Mapping[str, Any] | None:
    """`dataset.json` of a folder, or of the one above for `imagesTr` and `imagesTs`."""
    folder = path.parent if path.name.startswith("images") else path
    if not (folder / "dataset.json").is_file():
        return None
    described = read_json(folder / "dataset.json")
    if not isinstance(described, dict) or not isinstance(described.get("channel_names", described.get("modality")), dict):
        raise FileError(
            "names no channels", file=folder / "dataset.json", remedy="add channel_names (nnU-Net) or modality (MSD)"
        )
    return described


def _subsets(path: Path) -> list[Path]:
    """The image folders meant by a path: itself, or `imagesTr`, or else `imagesTs`."""
    if path.name.startswith("images"):
        return [path]
    training = path / "imagesTr"
    return [training] if images_in(training) else [path / "imagesTs"]


def _channels(path: Path, found: Gathering) -> dict[int, str]:
    described = _description(path) or {}
    channels = described.get("channel_names", described.get("modality", {}))
    return {int(number): found.words.get(str(name).lower()) or modality_name(str(name)) for number, name in channels.items()}


def _msd(path: Path, found: Gathering) -> None:
    """One file a case, one volume a modality."""
    channels, hint = _channels(path, found), _convention(path, "msd_task01")
    for folder in _subsets(path):
        for image in images_in(folder):
            for number, modality in channels.items():
                found.add(stem_of(image), modality, image, folder, channel=number if len(channels) > 1 else None)
            found.hint(stem_of(image), hint)
        _add_labels(folder, found)


def _nnunet(path: Path, found: Gathering) -> None:
    """`CASE_0000.nii.gz`: one file a modality, numbered as in `dataset.json`."""
    channels, hint = _channels(path, found), _convention(path, "nnunet_brats")
    for folder in _subsets(path):
        for image in images_in(folder):
            case, _, number = stem_of(image).rpartition("_")
            if not number.isdigit() or int(number) not in channels:
                found.fault(
                    case or stem_of(image), image, f"no channel {number!r} in dataset.json", "name files CASE_0000.nii.gz"
                )
                continue
            found.add(case, channels[int(number)], image, folder)
            found.hint(case, hint)
        _add_labels(folder, found)


def _add_labels(images: Path, found: Gathering) -> None:
    """The label maps beside `imagesTr` (or Ts); one without an image is a fault of that case."""
    for path in images_in(images.parent / images.name.replace("images", "labels")):
        found.add(stem_of(path), LABELS, path, images)


def _convention(path: Path, preferred: str) -> str | None:
    """The convention whose regions are those that `dataset.json` names, the preferred one first."""
    labels = (_description(path) or {}).get("labels")
    if not isinstance(labels, dict):
        return None
    if all(str(key).isdigit() for key in labels):  # MSD: number -> name
        labels = {name: int(key) for key, name in labels.items()}
    stated = {}
    for name, values in labels.items():
        meaning = _meaning(str(name).lower())
        if meaning is not None:
            stated[meaning] = frozenset(map(int, values)) if isinstance(values, list) else frozenset({int(values)})
    for convention in sorted(conventions.values(), key=lambda one: one.name != preferred):
        known = {**{name: frozenset({value}) for name, value in convention.values.items()}, **convention.regions}
        if stated and all(known.get(meaning) == values for meaning, values in stated.items()):
            return convention.name
    return None


def _meaning(name: str) -> str | None:
    """What a label's free name means in the vocabulary of BraTS."""
    patterns = {
        "WT": r"whole|^wt$",
        "RC": r"cavity|resect|^rc$",
        "NCR": r"necro|non.?enhanc|^ncr$|^net$|^nec$",
        "TC": r"core|^tc$",
        "ED": r"o?edema|snfh|^ed$",
        "ET": r"enhanc|^et$",
    }
    return next((meaning for meaning, pattern in patterns.items() if re.search(pattern, name)), None)


# --------------------------------------------------------------------------- BIDS and tables


def _bids(root: Path, found: Gathering) -> None:
    """`sub-01/[ses-1/]anat/sub-01_..._T1w.nii.gz`; T1w with a `ce-` entity is post-contrast T1."""
    for folder in [*sorted(root.glob("sub-*/anat")), *sorted(root.glob("sub-*/ses-*/anat"))]:
        case = "_".join(part for part in folder.relative_to(root).parts if part != "anat")
        for path in images_in(folder):
            *entities, suffix = stem_of(path).split("_")
            enhanced = any(entity.startswith("ce-") for entity in entities)
            sequence = "t1ce" if enhanced and suffix == "T1w" else found.sequence(suffix)
            if sequence is None:
                found.fault(case, path, f"not used: unknown sequence {suffix!r}", "declare it", severity="warning")
            elif not path.name.startswith(case.split("_")[0] + "_"):
                found.fault(case, path, "named for another case", "rename or move it")
            else:
                found.add(case, sequence, path, folder)


def _table(path: Path, found: Gathering) -> None:
    """A column `case`, one column a modality with paths (relative to the table), optionally `labels` and `convention`."""
    for number, row in enumerate(_rows(path), start=1):
        try:
            _row(path, number, row, found)
        except ModistillError as error:
            found.fault(error.case, f"{path}, row {number}", error.reason, error.remedy or "correct the row")


def _rows(path: Path) -> list[Any]:
    if path.suffix.lower() == ".json":
        content = read_json(path)
        rows = content.get("cases") if isinstance(content, dict) else content
        if not isinstance(rows, list):
            raise FileError("no list of cases", file=path, remedy='write [{"case": ..., "t1": ...}, ...]')
        return rows
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"unreadable table: {error}", file=path, remedy="save it as CSV in UTF-8") from error


def _row(table: Path, number: int, row: Any, found: Gathering) -> None:
    if not isinstance(row, dict) or None in row or not str(row.get("case") or "").strip():
        raise CaseError("no case id, or more cells than columns", remedy="give each row a cell `case` and one for each column")
    case = str(row["case"]).strip()
    if Path(case).name != case or case.startswith("."):
        raise CaseError(f"case id {case!r} cannot be a file name", remedy="choose another id")
    hint = row.get("convention") or None
    if hint is not None and hint not in conventions:
        raise CaseError(f"unknown label convention {hint!r}", case=case, remedy=f"known: {', '.join(conventions)}")
    cells = {column: cell for column, cell in row.items() if column not in ("case", "convention") and cell}
    if not cells:
        raise CaseError("no file in the row", case=case, remedy="fill in a path or remove the row")
    for column, cell in cells.items():
        file = table.parent / str(cell)
        if not file.exists():
            raise CaseError(f"{column}: no such file {cell}", case=case, remedy="correct the path or leave the cell empty")
        sequence = found.sequence(column) or modality_name(column)
        found.add(case, sequence, file, f"row {number}")
    found.hint(case, hint)
