"""How long a training waits for one patch: from the prepared store, against gunzip and crop.

    python benchmarks/loading.py RAW_FOLDER [--repeats 40]
    python benchmarks/loading.py --slices [--shape 512 512 120]
    python benchmarks/loading.py --augmentation nnunet [--repeats 200]

Prints milliseconds (median and fastest) on one thread for four modalities, warm disk cache, into a batch that is there
already, as the loader does; the same from a store of float32; then how long a training step waits for its batch (with
augmentation), with 0, 1 and 2 threads.

With --slices: milliseconds of one core for an axial slice as the loader gives it, and for a patch, from a chest phantom's CT of
that many voxels stored for patches and stored for slices; and the ratio.

With --augmentation: milliseconds of one core for drawn changes of a patch of four modalities, its margin included: the mean,
which is what a training pays, the median and the 95th percentile.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import blosc2
import numpy as np
import torch
from scipy import ndimage

from modistill.data.augmentation import Augmentation, augmentations
from modistill.data.folder import find_cases
from modistill.data.geometry import Triple, triple
from modistill.data.loading import Loader
from modistill.data.nifti import write_volume
from modistill.data.patches import choose_start
from modistill.data.preparing import prepare
from modistill.data.preprocessing import Preprocessing
from modistill.data.store import IMAGES, PreparedCohort, case_folder
from modistill.data.volume import Volume
from modistill.phantom.patient import phantom_case

SIZES = (64, 96, 128)


def milliseconds(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append((time.perf_counter() - begin) * 1e3)
    return float(np.median(times)), float(np.min(times))


def from_store(cohort: PreparedCohort, case: str, batch: torch.Tensor, rng: np.random.Generator) -> None:
    size = triple(batch.shape[1:])
    images, _ = cohort.patch(case, choose_start(cohort.entry(case).shape, size, rng), size)
    batch.copy_(torch.from_numpy(images))


def from_single(path: Path, batch: torch.Tensor, rng: np.random.Generator) -> None:
    array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    start = choose_start(array.shape[1:], triple(batch.shape[1:]), rng)
    box = (slice(None), *(slice(first, first + n) for first, n in zip(start, batch.shape[1:], strict=True)))
    batch.copy_(torch.from_numpy(array[box]))


def in_single_precision(images: np.ndarray, like: Path, path: Path) -> float:
    """Write float32 in the same blocks; the ratio of the sizes on disk."""
    stored = blosc2.open(str(like), mode="r")
    settings = {"codec": blosc2.Codec.LZ4, "clevel": 1, "filters": [blosc2.Filter.NOFILTER], "nthreads": 1}
    blosc2.asarray(images, urlpath=str(path), mode="w", chunks=stored.chunks, blocks=stored.blocks, cparams=settings)
    return like.stat().st_size / path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--slices", action="store_true")
    parser.add_argument("--augmentation", choices=[name for name, made in augmentations.items() if made])
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 120))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.slices:
        slices(triple(arguments.shape), arguments.repeats)
        return
    if augmentation := augmentations.get(arguments.augmentation):
        changes(augmentation, arguments.repeats)
        return
    if arguments.raw is None:
        parser.error("RAW_FOLDER, --slices or --augmentation")
    found = find_cases(arguments.raw)
    case = found.cases[0]
    modalities = found.modalities[:4]
    preprocessing = Preprocessing(modalities, tuple(name for name in modalities if name != "t1ce"))
    with tempfile.TemporaryDirectory() as place:
        begin = time.perf_counter()
        prepared = prepare(replace(found, cases=(case,)), Path(place, "p"), preprocessing, {"train": 1.0}).cohort
        print(f"preparing one case: {time.perf_counter() - begin:.2f} s")
        single = Path(place, "f32.b2nd")
        images = preprocessing.apply(case.read(modalities, with_labels=False)).images
        ratio = in_single_precision(images, case_folder(prepared.folder, case.id) / IMAGES, single)
        gunzip, _ = milliseconds(lambda: case.read(modalities), 3)
        print(f"gunzip of the raw case: {gunzip:.0f} ms; float16 takes {ratio:.2f} of the disk of float32\n")
        patches(prepared, case.id, single, gunzip, arguments.repeats)
        loaders(prepared)


def patches(prepared: PreparedCohort, case: str, single: Path, gunzip: float, repeats: int) -> None:
    rng = np.random.default_rng(0)
    modalities = len(prepared.plan.preprocessing.modalities)
    print("patch    store: median   fastest    time against float32    gunzip and crop takes")
    for edge in SIZES:
        batch = torch.empty(modalities, edge, edge, edge)
        median, fastest = milliseconds(partial(from_store, prepared, case, batch, rng), repeats)
        wide, _ = milliseconds(partial(from_single, single, batch, rng), repeats)
        print(f"{edge:4d}^3    {median:8.1f} ms {fastest:6.1f} ms    {median / wide:20.2f}    {gunzip / median:20.0f}x")


def loaders(prepared: PreparedCohort) -> None:
    names = prepared.plan.preprocessing
    matrix = torch.rand(2000, 2000)
    for workers in (0, 1, 2):
        loader = Loader(
            prepared,
            prepared.ids("train"),
            modalities=names.modalities,
            available=names.available,
            batch_size=2,
            patch_size=(96, 96, 96),
            steps_per_epoch=30,
            augmentation=augmentations["standard"],
            workers=workers,
        )
        waited, worked = 0.0, 0.0
        begin = time.perf_counter()
        for _ in loader.batches(0):
            ready = time.perf_counter()
            _ = matrix @ matrix  # stands for a training step
            waited, worked = waited + ready - begin, worked + time.perf_counter() - ready
            begin = time.perf_counter()
        wait_ms, step_ms = (seconds / 30 * 1e3 for seconds in (waited, worked))
        print(f"loader, {workers} threads: waits {wait_ms:.1f} ms for 2 x 96^3, before a step of {step_ms:.0f} ms")


def slices(shape: Triple, repeats: int) -> None:
    """Both ways of storing one case, the same samples from each."""
    ct = chest(shape)
    labels = ct.with_voxels((ct.voxels > 30).astype(np.uint8))
    asked = [(96, 96), (256, 256), shape[:2], *((edge,) * 3 for edge in SIZES)]
    sizes = [size for size in dict.fromkeys(asked) if np.all(np.less_equal(size, shape[: len(size)]))]
    with tempfile.TemporaryDirectory() as place:
        raw = Path(place, "raw", "chest")
        write_volume(raw / "chest_ct.nii.gz", ct, dtype=np.int16)
        write_volume(raw / "chest_seg.nii.gz", labels, dtype=np.uint8)
        how = Preprocessing(("ct",), ("ct",), normalisation=(-1000, 500), convention="chest")
        spent = {}
        for layout in (False, True):
            cohort = prepare(find_cases(raw.parent), Path(place, str(layout)), how, {"train": 1.0}, slices=layout, workers=1)
            spent[layout] = [core_ms(cohort.cohort, size, repeats) for size in sizes]
    print(f"{'x'.join(map(str, shape))} voxels    stored for patches    for slices    ratio")
    for size, patches_ms, slices_ms in zip(sizes, *spent.values(), strict=True):
        name = "x".join(map(str, size))
        print(f"{name:>16} {patches_ms:17.2f} ms {slices_ms:10.2f} ms {slices_ms / patches_ms:8.2f}")


def changes(augmentation: Augmentation, repeats: int) -> None:
    """Every draw is made once, and the same ones for all sizes."""
    print("patch         mean     median     95 %    (ms of one core)")
    for edge in (64, 128):
        times = []
        for seed in range(repeats):
            change = augmentation.sample(np.random.default_rng(seed)).for_patch((edge,) * 3)
            around = [edge + 2 * margin for margin in change.margin or (0, 0, 0)]
            images, labels = torch.randn(4, *around), torch.randint(4, around, dtype=torch.uint8)
            begin = time.process_time()
            change(images, labels)
            times.append((time.process_time() - begin) * 1e3)
        print(f"4 x {edge:3d}^3 {np.mean(times):8.1f} {np.median(times):10.1f} {np.percentile(times, 95):8.1f}")


def chest(shape: Triple) -> Volume:
    """A phantom's CT, enlarged, with the noise of a CT, which packs badly."""
    small = phantom_case(0, seed=0, shape=(128, 96, 40), body="chest").images["ct"]
    zooms = [n / m for n, m in zip(shape, small.shape, strict=True)]
    voxels = ndimage.zoom(small.voxels, zooms, order=1) + np.random.default_rng(0).normal(0, 20, shape)
    spacing = [size / factor for size, factor in zip(small.spacing_mm, zooms, strict=True)]
    return Volume(voxels.round().astype(np.float32), np.diag([*spacing, 1.0]))


def core_ms(cohort: PreparedCohort, size: tuple[int, ...], repeats: int) -> float:
    """Median time of one core for a sample; unlike time on the clock, it does not count what others do on the machine."""
    names = cohort.plan.preprocessing
    loader = Loader(
        cohort,
        cohort.ids("train"),
        modalities=names.modalities,
        available=names.available,
        patch_size=size,
        steps_per_epoch=repeats,
        workers=0,
        dims=len(size),
    )
    batches, times = loader.batches(0), []
    for _ in range(repeats):
        begin = time.process_time()
        next(batches)
        times.append((time.process_time() - begin) * 1e3)
    return float(np.median(times))


if __name__ == "__main__":
    main()
