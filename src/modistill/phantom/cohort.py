"""A phantom cohort on disk, in folders named as BraTS names them, so that everything downstream is the real path."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from modistill.errors import FileError, RecipeError
from modistill.phantom.patient import BODIES, Shape, case_id, check_request, named_body, phantom_case

__all__ = ["write_cohort"]

_FORMAT = 1  # counts up when the same seed no longer gives the same patient
_RECORD = "phantom.json"
_README = """# Synthetic patients

Every image in this folder was computed by `modistill phantom`: no person was ever examined. {made_of} Good for tests,
demonstrations and comparisons of methods under known conditions; says nothing about performance on patients.

`{record}` holds the parameters. One folder a case, {files}
Modalities left out on purpose: {without}.
"""


def write_cohort(
    folder: Path,
    cases: int,
    *,
    body: str = "brain",
    seed: int = 0,
    shape: Shape | None = None,
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
        body: `brain`, `chest` or `abdomen`.
        seed: of the cohort.
        shape: (D, H, W) voxels, None for what is usual for the body; the voxel size follows.
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
    chosen = named_body(body)
    shape = shape or chosen.shape
    _check(cases, seed, shape, first, without, workers, body)
    kept = tuple(name for name in chosen.modalities if name not in without)
    folder = Path(folder)
    _record(folder, {"format": _FORMAT, "seed": seed, "shape": list(shape), "modalities": list(kept)}, body, without)
    numbers = range(first, first + cases)
    missing = [number for number in numbers if not (folder / case_id(number)).is_dir()]
    done = progress or (lambda case: None)
    for number in sorted(set(numbers) - set(missing)):
        done(case_id(number))
    for number in _each(missing, workers, (folder, seed, shape, kept, body)):
        done(case_id(number))
    return [folder / case_id(number) for number in numbers]


def _check(cases: int, seed: int, shape: Shape, first: int, without: Collection[str], workers: int, body: str) -> None:
    check_request(first, seed, shape, body)
    if cases < 1 or workers < 1:
        raise RecipeError(f"{cases} cases with {workers} workers", file="phantom", remedy="give at least one of each")
    modalities = BODIES[body].modalities
    unknown = sorted(set(without) - set(modalities))
    if unknown:
        raise RecipeError(f"no modality {', '.join(unknown)}", file="phantom", remedy=f"there are {', '.join(modalities)}")
    if set(without) >= set(modalities):
        raise RecipeError("every modality is left out", file="phantom", remedy="leave at least one")


def _record(folder: Path, parameters: dict[str, Any], body: str, without: Collection[str]) -> None:
    """Write the parameters beside the patients, or compare them with those that are there."""
    from modistill.files import read_json, write_json, write_text

    chosen = BODIES[body]
    # What the labels mean cannot be told from names and numbers as it can for the brain, so the folder says it (`data.folder`).
    named = {} if body == "brain" else {"body": body, "convention": chosen.convention}
    path = folder / _RECORD
    if path.exists():
        there = read_json(path)
        if not isinstance(there, dict):
            raise FileError("not the record of a phantom cohort", file=path, remedy="choose another folder")
        there, wanted = {"body": "brain", **there}, {"body": body, **parameters}
        different = [f"{key} {there.get(key)}" for key, value in wanted.items() if there.get(key) != value]
        if different:
            found = ", ".join(different)
            raise RecipeError(f"made with {found}", file=path, remedy="choose another folder or the same options")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise FileError("holds other files", file=folder, remedy="choose a new or empty folder")
    words = {"made_of": chosen.made_of, "files": chosen.files, "without": ", ".join(sorted(without)) or "none"}
    write_text(folder / "README.md", _README.format(record=_RECORD, **words))
    x, y, z = chosen.spacing_mm(tuple(parameters["shape"]))
    write_json(path, {"synthetic": True, **named, **parameters, "spacing_mm": x if x == y == z else [x, y, z]})


def _each(numbers: list[int], workers: int, rest: tuple[Path, int, Shape, tuple[str, ...], str]) -> Iterator[int]:
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


def _write(number: int, folder: Path, seed: int, shape: Shape, kept: tuple[str, ...], body: str) -> int:
    from modistill.data.nifti import write_volume
    from modistill.files import atomic_folder

    case = phantom_case(number, seed=seed, shape=shape, body=body)
    with atomic_folder(folder / case.id) as place:
        for name in kept:
            write_volume(place / f"{case.id}_{name}.nii.gz", case.images[name], dtype="int16")
        if case.labels is not None:
            write_volume(place / f"{case.id}_seg.nii.gz", case.labels, dtype="uint8")
    return number
