"""The folders of predictions and of translations: what lies in them, and when a case in them is done.

    OUT/
      CASE.nii.gz                        label map on the native grid; its header says what was synthetic
      CASE.json                          how it was made; written last, so a case that has one is complete
      probabilities/CASE/REGION.nii.gz   on request: probability of each region, float32; apart, as they are no label maps
      uncertainty/CASE/REGION.nii.gz     on request: 0 (certain) to 100 (the largest entropy possible), float32; and entropy,
                                         mutual_information, brain
      report.json                        one entry a case

    OUT/
      CASE/CASE_MODALITY.nii.gz          translation on the native grid, float32; the folder is a cohort again
      CASE/CASE_MODALITY.json            that it is synthetic, its scale, and how it was made; written last. A case
                                         may lie there in several modalities, each with a record of its own
      report.json                        one entry a case, of the latest run

The JSON file of a case holds the digests of the files it vouches for and of those they were made from. A case is *done* when
they all still match; a file that merely exists proves nothing.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np

from modistill.data.cohort import CaseFiles
from modistill.data.nifti import write_volume
from modistill.errors import CaseError, FileError, ModistillError
from modistill.files import read_json, run_lock, sha256, write_json
from modistill.inference.completion import header
from modistill.inference.predictor import Prediction
from modistill.inference.translator import Translation

__all__ = ["CaseFolder", "IfNotEmpty", "OutputFolder", "TranslationFolder", "source_digests"]

IfNotEmpty: TypeAlias = Literal["refuse", "overwrite", "continue"]

REPORT = "report"


class CaseFolder(ABC):
    """A folder in which each case is complete or not there.

    Args:
        path: made if it is not there.
        if_not_empty: "refuse" the folder, "overwrite" the cases that are made, or "continue": leave cases that are done.
    """

    def __init__(self, path: Path, if_not_empty: IfNotEmpty = "refuse") -> None:
        self.path = path
        self.if_not_empty = if_not_empty

    @abstractmethod
    def clear(self, case: str) -> None:
        """Remove what there is of a case, the record that vouches for it first."""

    @abstractmethod
    def _sidecar(self, case: str) -> Path:
        """The record of a case."""

    @contextmanager
    def opened(self) -> Iterator[Self]:
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
            for unfinished in self.path.rglob(".*.part*"):  # of a run that was killed: whoever wrote it held the lock
                unfinished.unlink(missing_ok=True)
            yield self

    def is_done(self, case: CaseFiles, made_with: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
        """Whether a case is there complete, made from these files with these settings."""
        if self.if_not_empty != "continue" or not self._sidecar(case.id).is_file():
            return False
        try:
            record = read_json(self._sidecar(case.id))
            same = record["made_with"] == _as_read(made_with) and record["inputs"] == _as_read(inputs)
            same &= "synthetic_inputs" in record  # who wrote it without did not look
            return same and all(digest and _digest(self.path / name) == digest for name, digest in record["files"].items())
        except (ModistillError, KeyError, TypeError, AttributeError):  # a damaged record vouches for nothing
            return False

    def synthetic_inputs(self, case: str) -> tuple[str, ...]:
        """The modalities of synthetic images that a case which is done was made from."""
        return tuple(read_json(self._sidecar(case))["synthetic_inputs"])

    def write_report(self, content: Mapping[str, Any]) -> None:
        """Write `report.json`."""
        write_json(self.path / f"{REPORT}.json", dict(content))

    def _vouch(
        self,
        case: str,
        record: Mapping[str, Any],
        written: Sequence[Path],
        made_with: Mapping[str, Any],
        inputs: Mapping[str, str],
        seconds: float,
    ) -> None:
        """Write the record of a case, which says that it is complete."""
        names = [str(path.relative_to(self.path)) for path in written]
        facts = {
            "versions": {package: metadata.version(package) for package in ("modistill", "torch", "numpy")},
            "seconds": round(seconds, 2),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "made_with": dict(made_with),
            "inputs": dict(inputs),
            "files": {name: _digest(self.path / name) for name in names},
        }
        write_json(self._sidecar(case), {**record, **facts})


class OutputFolder(CaseFolder):
    """Where predictions go.

    Args:
        path: see `CaseFolder`.
        if_not_empty: see `CaseFolder`.
        probabilities: also keep the probability of each region.
    """

    def __init__(self, path: Path, if_not_empty: IfNotEmpty = "refuse", *, probabilities: bool = False) -> None:
        super().__init__(path, if_not_empty)
        self.probabilities = probabilities

    def clear(self, case: str) -> None:
        """Remove what there is of a case, the record that vouches for it first."""
        self._sidecar(case).unlink(missing_ok=True)
        self._labels(case).unlink(missing_ok=True)
        for folder in (self._probabilities(case), self._uncertainty(case)):
            shutil.rmtree(folder, ignore_errors=True)

    def write(self, found: Prediction, made_with: Mapping[str, Any], inputs: Mapping[str, str], seconds: float) -> None:
        """Write one case; its record comes last.

        Raises:
            FileError: a file cannot be written.
        """
        said = header(found.substitutes, found.synthetic_inputs)
        write_volume(self._labels(found.case), found.labels, dtype=np.uint8, description=said)
        written = [self._labels(found.case)]
        for region, volume in found.region_probabilities().items() if self.probabilities else ():
            written.append(self._probabilities(found.case) / f"{region}.nii.gz")
            write_volume(written[-1], volume, dtype=np.float32, description=said)
        for name, volume in found.uncertainty.items():
            written.append(self._uncertainty(found.case) / f"{name}.nii.gz")
            write_volume(written[-1], volume, dtype=np.float32, description=said)
        if found.brain is not None:
            written.append(self._uncertainty(found.case) / "brain.nii.gz")
            write_volume(written[-1], found.brain, dtype=np.uint8)
        self._vouch(found.case, _record(found), written, made_with, inputs, seconds)

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

    def _probabilities(self, case: str) -> Path:
        return self.path / "probabilities" / case

    def _uncertainty(self, case: str) -> Path:
        return self.path / "uncertainty" / case


class TranslationFolder(CaseFolder):
    """Where translations into one modality go; those into others may lie beside them and are left alone.

    Args:
        path: see `CaseFolder`.
        target: modality they are of.
        if_not_empty: see `CaseFolder`.
    """

    def __init__(self, path: Path, target: str, if_not_empty: IfNotEmpty = "refuse") -> None:
        super().__init__(path, if_not_empty)
        self.target = target

    def clear(self, case: str) -> None:
        """Remove what there is of a case in this modality, the record first; its folder stays if something else lies in it."""
        self._sidecar(case).unlink(missing_ok=True)
        self._image(case).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._image(case).parent.rmdir()

    def write(self, made: Translation, made_with: Mapping[str, Any], inputs: Mapping[str, str], seconds: float) -> None:
        """Write one case; its record comes last.

        Raises:
            FileError: a file cannot be written.
        """
        place = self._image(made.case)
        write_volume(place, made.image, dtype=np.float32, description=made.description)
        self._vouch(made.case, made.record(), [place], made_with, inputs, seconds)

    def _image(self, case: str) -> Path:
        return self.path / case / f"{case}_{self.target}.nii.gz"

    def _sidecar(self, case: str) -> Path:
        return self.path / case / f"{case}_{self.target}.json"


def source_digests(case: CaseFiles, modalities: Sequence[str], *, with_labels: bool = False) -> dict[str, str]:
    """Modality, and "labels" if asked for -> SHA-256 of its file, with the channel of a file that holds several.

    A file that cannot be read has none here: what is wrong with it is for the reader to say.
    """
    sources = {name: case.images[name] for name in modalities}
    digests = {path: _digest(path) for path in {source.path for source in sources.values()}}
    found = {
        name: (digests[source.path] or "") + ("" if source.channel is None else f":{source.channel}")
        for name, source in sources.items()
    }
    return found | ({"labels": _digest(case.labels) or ""} if with_labels and case.labels is not None else {})


def _digest(path: Path) -> str | None:
    """SHA-256 of a regular file; None of anything else, and of what cannot be read."""
    try:
        return sha256(path) if path.is_file() else None
    except OSError:
        return None


def _as_read(value: Mapping[str, Any]) -> Any:
    """Plain values as they come back from a JSON file: tuples as lists."""
    return json.loads(json.dumps(value))


def _record(found: Prediction) -> dict[str, Any]:
    """What a reader of a label map wants to know about it."""
    model = found.used_model
    return {
        "case": found.case,
        "run": model.name,
        "available": list(found.available),
        "synthetic_inputs": list(found.synthetic_inputs),
        "reason": found.reason,
        "substitutes": [one.to_json() for one in found.substitutes],
        "notices": list(found.notices),
        "convention": found.convention.name,
        "labels": {name: found.convention.values[name] for name in model.convention.values},
        "model": {
            "source": None if model.source is None else str(model.source.resolve()),
            "method": type(model.method).__name__,
        },
    }
