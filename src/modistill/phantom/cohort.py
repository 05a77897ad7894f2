"""A phantom cohort on disk, in BraTS folders, so that everything downstream is the real path."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from modistill.errors import FileError, RecipeError
from modistill.phantom.patient import Shape, case_id, check_request, phantom_case, spacing_mm
from modistill.phantom.sequences import MODALITIES

__all__ = ["write_cohort"]

_FORMAT = 1  # counts up when the same seed no longer gives the same patient
_RECORD = "phantom.json"
_README = """# Synthetic patients

Every image in this folder was computed by `modistill phantom`: no person was ever examined. Anatomy comes from formulas,
contrast from the signal equations of spin echo and inversion recovery, tumours from random fields. Good for tests,
demonstrations and comparisons of methods under known conditions; says nothing about performance on patients.

`{record}` holds the parameters. One folder a case, named as BraTS 2021 names its files: `_t1`, `_t1ce`, `_t2`, `_flair` (int16,
zero outside the brain) and `_seg` (1 necrosis and non-enhancing core, 2 oedema, 4 enhancing tumour).
Modalities left out on purpose: {without}.
"""


def write_cohort(
    folder: Path,
    cases: int,
    *,
    seed: int = 0,
    shape: Shape = (96, 96, 80),
    first: int = 0,
    without: Collection[str] = (),
    workers: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write patients as `FOLDER/Phantom_00000/Phantom_00000_t1.nii.gz` and so on, each folder whole or not at all.

    An interrupted call is finished by the same call, and a cohort grows by a call for more cases: patients that are there are
    kept. `phantom.json` records the parameters, and a folder made with others is refused.

    Args:
        folder: made if absent.
        cases: how many patients.
        seed: of the cohort.
        shape: (D, H, W) voxels; the voxel size follows.
        first: number of the first patient, so that a test cohort can hold others than the training cohort.
        without: modalities that are not written, as if they had never been acquired.
        workers: processes; 1 works in this one.
        progress: called with the id of each patient that is there, as it is finished.

    Returns:
        The folders of the patients, in order.

    Raises:
        RecipeError: parameters no phantom can be made of, or other ones than the folder was made with.
        FileError: the folder cannot be written.
    """
    _check(cases, seed, shape, first, without, workers)
    kept = tuple(name for name in MODALITIES if name not in without)
    folder = Path(folder)
    _record(folder, {"format": _FORMAT, "seed": seed, "shape": list(shape), "modalities": list(kept)}, shape, without)
    numbers = range(first, first + cases)
    missing = [number for number in numbers if not (folder / case_id(number)).is_dir()]
    done = progress or (lambda case: None)
    for number in sorted(set(numbers) - set(missing)):
        done(case_id(number))
    for number in _each(missing, workers, (folder, seed, shape, kept)):
        done(case_id(number))
    return [folder / case_id(number) for number in numbers]


def _check(cases: int, seed: int, shape: Shape, first: int, without: Collection[str], workers: int) -> None:
    check_request(first, seed, shape)
    if cases < 1 or workers < 1:
        raise RecipeError(f"{cases} cases with {workers} workers", file="phantom", remedy="give at least one of each")
    unknown = sorted(set(without) - set(MODALITIES))
    if unknown:
        raise RecipeError(f"no modality {', '.join(unknown)}", file="phantom", remedy=f"there are {', '.join(MODALITIES)}")
    if set(without) >= set(MODALITIES):
        raise RecipeError("every modality is left out", file="phantom", remedy="leave at least one")


def _record(folder: Path, parameters: dict[str, Any], shape: Shape, without: Collection[str]) -> None:
    """Write the parameters beside the patients, or compare them with those that are there."""
    from modistill.files import read_json, write_json, write_text

    path = folder / _RECORD
    if path.exists():
        there = read_json(path)
        if not isinstance(there, dict):
            raise FileError("not the record of a phantom cohort", file=path, remedy="choose another folder")
        different = [f"{key} {there.get(key)}" for key, value in parameters.items() if there.get(key) != value]
        if different:
            found = ", ".join(different)
            raise RecipeError(f"made with {found}", file=path, remedy="choose another folder or the same options")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise FileError("holds other files", file=folder, remedy="choose a new or empty folder")
    write_text(folder / "README.md", _README.format(record=_RECORD, without=", ".join(sorted(without)) or "none"))
    write_json(path, {"synthetic": True, **parameters, "spacing_mm": spacing_mm(shape)})


def _each(numbers: list[int], workers: int, rest: tuple[Path, int, Shape, tuple[str, ...]]) -> Iterator[int]:
    """Write these patients, in this process or in several; yields each number when it is done."""
    if workers == 1 or len(numbers) < 2:
        for number in numbers:
            yield _write(number, *rest)
        return
    # Spawned, not forked: the caller may hold threads (a progress bar, torch), and forking those can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(numbers)), mp_context=context) as pool:
        tasks = [pool.submit(_write, number, *rest) for number in numbers]
        try:
            for task in as_completed(tasks):
                yield task.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write(number: int, folder: Path, seed: int, shape: Shape, kept: tuple[str, ...]) -> int:
    from modistill.data.nifti import write_volume
    from modistill.files import atomic_folder

    case = phantom_case(number, seed=seed, shape=shape)
    with atomic_folder(folder / case.id) as place:
        for name in kept:
            write_volume(place / f"{case.id}_{name}.nii.gz", case.images[name], dtype="int16")
        if case.labels is not None:
            write_volume(place / f"{case.id}_seg.nii.gz", case.labels, dtype="uint8")
    return number
