"""The folder of predictions: what lies in it, and when a case in it is done.

    OUT/
      CASE.nii.gz                        label map on the native grid
      CASE.json                          how it was made; written last, so a case that has one is complete
      probabilities/CASE_REGION.nii.gz   on request: probability of each region, float32
      report.json                        one entry a case

`CASE.json` holds the digests of the files it vouches for and of those they were made from. A case is *done* when they all
still match; a file that merely exists proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from modistill.data.cohort import CaseFiles
from modistill.data.nifti import write_volume
from modistill.errors import CaseError, FileError, ModistillError
from modistill.files import read_json, run_lock, sha256, write_json
from modistill.inference.predictor import Prediction

__all__ = ["IfNotEmpty", "OutputFolder", "source_digests"]

IfNotEmpty: TypeAlias = Literal["refuse", "overwrite", "continue"]

REPORT = "report"
PROBABILITIES = "probabilities"


class OutputFolder:
    """Where predictions go.

    Args:
        path: made if it is not there.
        if_not_empty: "refuse" the folder, "overwrite" the cases that are predicted, or "continue": leave cases that are done.
        probabilities: also keep the probability of each region.
    """

    def __init__(self, path: Path, if_not_empty: IfNotEmpty = "refuse", *, probabilities: bool = False) -> None:
        self.path = path
        self.if_not_empty = if_not_empty
        self.probabilities = probabilities

    @contextmanager
    def opened(self) -> Iterator[OutputFolder]:
        """Hold the folder for this process.

        Raises:
            FileError: it cannot be written, another process holds it, or it is not empty and nothing was said about that.
        """
        if (
            self.path.is_dir()
            and self.if_not_empty == "refuse"
            and any(not p.name.startswith(".") for p in self.path.iterdir())
        ):
            raise FileError("is not empty", file=self.path, remedy="--continue, --overwrite, or another folder")
        with run_lock(self.path):
            yield self

    def is_done(self, case: CaseFiles, made_with: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
        """Whether a case is there complete, made from these files with these settings."""
        if self.if_not_empty != "continue" or not self._sidecar(case.id).is_file():
            return False
        try:
            record = read_json(self._sidecar(case.id))
            if record["made_with"] != dict(made_with) or record["inputs"] != dict(inputs):
                return False
            return {name: self._digest(name) for name in record["files"]} == record["files"] and bool(record["files"])
        except (ModistillError, KeyError, TypeError, AttributeError):  # a damaged record vouches for nothing
            return False

    def clear(self, case: str) -> None:
        """Remove what an earlier run left of a case, the record that vouched for it first."""
        for path in (self._sidecar(case), self._labels(case), *(self.path / PROBABILITIES).glob(f"{_escaped(case)}_*.nii.gz")):
            path.unlink(missing_ok=True)

    def write(self, found: Prediction, made_with: Mapping[str, Any], inputs: Mapping[str, str], seconds: float) -> None:
        """Write one case; its record comes last.

        Raises:
            FileError: a file cannot be written.
        """
        write_volume(self._labels(found.case), found.labels, dtype=np.uint8)
        written = [self._labels(found.case)]
        for region, volume in found.region_probabilities().items() if self.probabilities else ():
            written.append(self.path / PROBABILITIES / f"{found.case}_{region}.nii.gz")
            write_volume(written[-1], volume, dtype=np.float32)
        names = [str(path.relative_to(self.path)) for path in written]
        record = {
            **_record(found),
            "seconds": round(seconds, 2),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "made_with": dict(made_with),
            "inputs": dict(inputs),
            "files": {name: self._digest(name) for name in names},
        }
        write_json(self._sidecar(found.case), record)

    def write_report(self, content: Mapping[str, Any]) -> None:
        """Write `report.json`."""
        write_json(self._sidecar(REPORT), dict(content))

    def require_name(self, case: str) -> None:
        """Refuse a case whose files would bear the name of the report.

        Raises:
            CaseError: it would.
        """
        if case == REPORT:
            raise CaseError(
                f"a case cannot be called {REPORT}: its record would be {REPORT}.json", case=case, remedy="rename it"
            )

    def _labels(self, case: str) -> Path:
        return self.path / f"{case}.nii.gz"

    def _sidecar(self, case: str) -> Path:
        return self.path / f"{case}.json"

    def _digest(self, name: str) -> str | None:
        path = self.path / name
        return sha256(path) if path.is_file() else None


def source_digests(case: CaseFiles, modalities: Sequence[str]) -> dict[str, str]:
    """Modality -> SHA-256 of its file, with the channel of a file that holds several."""
    digests: dict[Path, str] = {}
    named = {}
    for name in modalities:
        source = case.images[name]
        try:
            digest = digests.setdefault(source.path, "") or sha256(source.path)
        except OSError as error:
            raise FileError(f"cannot be read: {error.strerror or error}", case=case.id, file=source.path) from error
        digests[source.path] = digest
        named[name] = digest if source.channel is None else f"{digest}:{source.channel}"
    return named


def _record(found: Prediction) -> dict[str, Any]:
    """What a reader of a label map wants to know about it."""
    model = found.used_model
    return {
        "case": found.case,
        "run": model.name,
        "available": list(model.needs),
        "reason": found.reason,
        "notices": list(found.notices),
        "convention": found.convention.name,
        "labels": {name: found.convention.values[name] for name in model.convention.values},
        "model": {"source": None if model.source is None else str(model.source), "method": type(model.method).__name__},
        "versions": {package: metadata.version(package) for package in ("modistill", "torch", "numpy")},
    }


def _escaped(name: str) -> str:
    import glob

    return glob.escape(name)
