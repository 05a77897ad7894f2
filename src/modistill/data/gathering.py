"""Gathering the files of cases by name: what a file name says, and what is wrong with a set of files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modistill.data.cohort import CaseFiles, Fault, ImageSource
from modistill.data.naming import known_modality, modality_name

__all__ = ["LABELS", "Gathering", "images_in", "split_name", "stem_of"]

LABELS = "labels"
_LABEL_WORDS = frozenset({"seg", "segm", "segmentation", "label", "labels", "mask"})
_SUFFIXES = (".nii.gz", ".nii")
_USUAL_ORDER = ("t1", "t1ce", "t2", "flair")


class Gathering:
    """Collects the files of cases; what is there twice, or for the wrong case, becomes a fault and costs only that case.

    Args:
        words: what the user declared, word -> modality.
    """

    def __init__(self, words: Mapping[str, str]) -> None:
        self.words = {word.lower(): modality_name(name) for word, name in words.items()}
        self._files: dict[str, dict[str, list[ImageSource]]] = {}
        self._origins: dict[str, list[str]] = {}
        self._hints: dict[str, str] = {}
        self._faults: list[Fault] = []

    def sequence(self, word: str) -> str | None:
        """What a word in a file name stands for: a modality, the labels, or nothing known."""
        if word.lower() in self.words:
            return self.words[word.lower()]
        return LABELS if word.lower() in _LABEL_WORDS else known_modality(word)

    def add(self, case: str, sequence: str, path: Path, origin: object, channel: int | None = None) -> None:
        """A file of a case; `origin` (folder, row of a table) tells cases of the same name apart."""
        self._files.setdefault(case, {}).setdefault(sequence, []).append(ImageSource(path, channel))
        if str(origin) not in self._origins.setdefault(case, []):
            self._origins[case].append(str(origin))

    def hint(self, case: str, convention: str | None) -> None:
        """What the layout says about the label values of a case."""
        if convention is not None:
            self._hints.setdefault(case, convention)

    def fault(self, case: str | None, file: object, reason: str, remedy: str, **severity: Any) -> None:
        """Something wrong; an error costs the case, if one is named."""
        self._faults.append(Fault(case, None if file is None else str(file), reason, remedy, **severity))

    def finish(self) -> tuple[tuple[CaseFiles, ...], tuple[Fault, ...]]:
        """The usable cases by id, and all faults."""
        for case, files in self._files.items():
            self._check(case, files)
        refused = {fault.case for fault in self._faults if fault.severity == "error"}
        return tuple(self._case(case) for case in sorted(self._files) if case not in refused), tuple(self._faults)

    def _check(self, case: str, files: Mapping[str, list[ImageSource]]) -> None:
        origins = self._origins[case]
        if len(origins) > 1:
            self.fault(case, origins[1], f"duplicate case id, also in {origins[0]}", "rename or remove one of them")
            return
        if not set(files) - {LABELS}:
            self.fault(case, origins[0], "labels, but no image", "add the images or remove the case")
        for sequence, sources in files.items():
            names = [source.path.name for source in sources]
            if len(names) > 1:
                twins = len({stem_of(source.path) for source in sources}) == 1
                what = "both as .nii and as .nii.gz" if twins else "twice"
                self.fault(case, sources[0].path, f"{sequence} is there {what}: {', '.join(names)}", "keep one of them")

    def _case(self, case: str) -> CaseFiles:
        files = self._files[case]
        names = sorted(set(files) - {LABELS}, key=lambda name: (_USUAL_ORDER.index(name) if name in _USUAL_ORDER else 9, name))
        labels = files[LABELS][0].path if LABELS in files else None
        return CaseFiles(case, {name: files[name][0] for name in names}, labels, self._hints.get(case))


def stem_of(path: Path) -> str:
    """The name without `.nii` or `.nii.gz`."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def split_name(path: Path, words: Mapping[str, str]) -> tuple[str, str]:
    """A file name into the case's part and the word for the sequence (`p1_t2-flair` -> `p1`, `t2-flair`).

    The word is one part of the name or two, whichever is known; the case's part may be empty.
    """
    stem = stem_of(path)
    parts = re.split(r"([_-])", stem)  # words at even places, separators between them
    for length in (3, 1, len(parts)):
        word = "".join(parts[-length:])
        if word.lower() in words or word.lower() in _LABEL_WORDS or known_modality(word):
            return "".join(parts[: -length - 1]), word
    return "".join(parts[:-2]), parts[-1]


def images_in(folder: Path) -> list[Path]:
    """NIfTI files of a folder by name, hidden ones (as `._x.nii.gz` from other systems' archives) left out."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIXES) and not path.name.startswith("."))
