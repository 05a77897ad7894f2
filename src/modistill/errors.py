"""Everything that can go wrong in a way a user can do something about.

Every message is one line that says what is wrong, where, and what to do::

    error: BraTS19_001: flair.nii.gz: truncated, 10 of 27 bytes (fetch the file again)
           `case`       `file`        `reason`                   `remedy`

The tree, with the exit code of the command line::

    ModistillError            2   bad input or usage
    ├── FileError             2   a file cannot be read, or cannot be written
    ├── GeometryError         2   volumes of one case do not lie on one grid
    ├── LabelError            2   label values outside the stated convention
    ├── CaseError             2   a case lacks something, or holds it twice
    ├── RecipeError           2   a recipe, an option or an argument is wrong
    ├── ModelError            2   a run or model is damaged, or does not fit the case
    ├── ScoreError            2   score rows that cannot be compared
    └── TrainingStopped       4   a training cannot go on (NaN loss, full disk)

A command that finished some cases and not others ends with exit code 3; a bug ends with 1.
"""

from __future__ import annotations

import os

__all__ = [
    "CaseError",
    "FileError",
    "GeometryError",
    "LabelError",
    "ModelError",
    "ModistillError",
    "RecipeError",
    "ScoreError",
    "TrainingStopped",
]


class ModistillError(Exception):
    """A fault with its place and its remedy.

    Args:
        reason: what is wrong, in a few words, with the values found.
        case: id of the case, where there is one.
        file: path of the file (or key of the recipe) at fault.
        remedy: what the user can do about it.

    Example:
        >>> print(FileError("empty file", case="p01", file="t1.nii.gz", remedy="fetch it again"))
        p01: t1.nii.gz: empty file (fetch it again)
    """

    exit_code = 2

    def __init__(
        self,
        reason: str,
        *,
        case: str | None = None,
        file: str | os.PathLike[str] | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.case = case
        self.file = None if file is None else os.fspath(file)
        self.remedy = remedy

    def __str__(self) -> str:
        place = "".join(f"{part}: " for part in (self.case, self.file) if part)
        return f"{place}{self.reason}" + (f" ({self.remedy})" if self.remedy else "")

    def at(self, case: str) -> ModistillError:
        """The same error, with the case it belongs to named (kept if one is named already)."""
        self.case = self.case or case
        return self


class FileError(ModistillError):
    """A file cannot be read (absent, cut, not what it claims) or written (disk full, no permission)."""


class GeometryError(ModistillError):
    """Volumes that belong together do not lie on one grid."""


class LabelError(ModistillError):
    """A label map holds values outside its convention, or fractions."""


class CaseError(ModistillError):
    """A case lacks a modality or labels that are needed, or holds one twice."""


class RecipeError(ModistillError):
    """A recipe, an option or an argument is wrong."""


class ModelError(ModistillError):
    """A run folder or a model file is damaged, foreign, or cannot serve the case."""


class ScoreError(ModistillError):
    """Score rows that are damaged or cannot be compared with each other."""


class TrainingStopped(ModistillError):
    """A training that cannot go on: a loss that is not finite, a full disk."""

    exit_code = 4
