"""From a prepared cohort to batches, read ahead by threads.

What a sample is depends on (seed, epoch, position) and on nothing else: not on the number of workers, not on where an
interrupted epoch goes on, not on the number of ranks. Threads read ahead while the network computes and write each sample
right into its batch, so nothing is copied between processes. (Blosc2 keeps the interpreter's lock while it unpacks a patch,
2 ms for 64 voxels an axis and 8 ms for 128; conversion and augmentation run beside everything else.)
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch

from modistill.data.augmentation import Augmentation
from modistill.data.batch import Batch
from modistill.data.geometry import Triple, triple
from modistill.data.patches import choose_start, widen
from modistill.data.store import CaseEntry, PreparedCohort
from modistill.errors import ModistillError, RecipeError

__all__ = ["Loader", "deal"]

_ORDER, _SAMPLE, _CASE, _DEAL = 0, 1, 2, 3  # streams of random numbers that never meet


@dataclass(frozen=True)
class _Domain:
    """What one kind of sample is drawn from.

    Attributes:
        ids: the cases.
        channels: of the prepared images, those a sample shows.
    """

    ids: tuple[str, ...]
    channels: tuple[int, ...]


def deal(fits: Mapping[str, Sequence[int]], domains: int, seed: int) -> list[tuple[str, ...]]:
    """Give every case to one domain, so that sizes are as equal as they can be dealt.

    Shuffled, the cases are dealt in turn. Where some fit few domains, these come first, and each goes to the smallest of those
    it fits; of equals to the one that fewest cases fit.

    Args:
        fits: case -> numbers of the domains whose modalities it has; a case without any is left out.
        domains: how many there are.
        seed: of the shuffle.

    Returns:
        The cases of each domain, sorted.

    Example:
        >>> deal({"a": [0, 1], "b": [0, 1], "c": [0], "d": []}, 2, seed=0)
        [('c',), ('a', 'b')]
    """
    cases = sorted(fits)
    order = np.random.default_rng([seed, _DEAL]).permutation(len(cases))
    candidates = Counter(domain for some in fits.values() for domain in some)
    dealt: list[list[str]] = [[] for _ in range(domains)]
    for case in sorted((cases[index] for index in order), key=lambda case: len(fits[case])):  # sorting keeps the shuffle
        if fits[case]:
            dealt[min(fits[case], key=lambda domain: (len(dealt[domain]), candidates[domain], domain))].append(case)
    return [tuple(sorted(some)) for some in dealt]


class Loader:
    """Batches of one part of a prepared cohort.

    Every case is seen once before any is seen twice, in an order shuffled anew each time. With `steps_per_epoch` each sample is
    of any case instead, drawn with replacement, as in nnU-Net (https://doi.org/10.1038/s41592-020-01008-z: 250 steps).

    With `domains`, batches are unpaired: samples of the domains take turns in them, each domain drawn by itself from the cases
    that have its modalities, and a sample shows the modalities of its domain only, even where the case has others. With `apart`
    each case is drawn by one domain only, in every epoch the same: no patient is ever seen in two of them.

    Args:
        cohort: where to read.
        ids: cases to draw from.
        modalities: channels of `Batch.images`, in order; any of the cohort's.
        available: those that exist at test time.
        batch_size: samples a step, over all ranks; with domains, of each of them.
        patch_size: voxels (D, H, W) of a sample; None for whole cases, filled up with zeros at the end to the largest of a
            batch. With `dims` 2, (D, H) of an axial slice, of those that the crop holds: none of the padding beyond them.
        samples_per_case: how often each case (with domains, of the first) is drawn in an epoch.
        steps_per_epoch: batches an epoch, instead of what `samples_per_case` gives (rounded up).
        augmentation: applied to each sample.
        foreground_fraction: how many patches (or slices) hold a given foreground voxel, the class drawn first among those the
            case has; the others are drawn from the whole case.
        foreground: which these are. "probability": each with this probability, and the voxel lies anywhere in it. "share":
            nnU-Net's rule, of b samples of a step (and domain) those from round(b (1 - foreground_fraction)) on, and the voxel
            lies in the middle, as near as the ends of the case allow.
        seed: of order, positions and augmentation.
        workers: threads; 0 reads when asked.
        dims: 3 for volumes, 2 for axial slices.
        domains: modalities of each domain of an unpaired training; none for one draw from all cases.
        apart: deal each case to one of the domains, see `deal`, in an order that the cohort's split decides.

    Raises:
        RecipeError: no case (in a domain), an unknown modality, a number that makes no sense, or `apart` without domains.
        CaseError: an id that is not in the cohort.
    """

    def __init__(
        self,
        cohort: PreparedCohort,
        ids: Sequence[str],
        *,
        modalities: Sequence[str],
        available: Sequence[str],
        batch_size: int = 1,
        patch_size: Sequence[int] | None = None,
        samples_per_case: int = 1,
        steps_per_epoch: int | None = None,
        augmentation: Augmentation | None = None,
        foreground_fraction: float = 1 / 3,
        foreground: Literal["probability", "share"] = "probability",
        seed: int = 0,
        workers: int = 2,
        dims: int = 3,
        domains: Sequence[Sequence[str]] = (),
        apart: bool = False,
    ) -> None:
        self.cohort, self.ids = cohort, tuple(sorted(ids))
        self.modalities, self.available = tuple(modalities), tuple(available)
        self.batch_size, self.dims = batch_size, dims
        self.patch_size = None if patch_size is None else tuple(patch_size)
        self.augmentation, self.foreground_fraction, self.foreground = augmentation, foreground_fraction, foreground
        self.seed, self.workers, self.replacement = seed, workers, steps_per_epoch is not None
        self._check(samples_per_case, 1 if steps_per_epoch is None else steps_per_epoch)
        known = cohort.plan.preprocessing.modalities
        self._channels = [known.index(name) for name in self.modalities]
        self._entries = {case: cohort.entry(case) for case in self.ids}
        self._domains = self._parts(domains, apart) or (_Domain(self.ids, tuple(self._channels)),)
        self._steps = steps_per_epoch or -(-len(self._domains[0].ids) * samples_per_case // batch_size)

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._steps

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches of one epoch, or this rank's part of each of them.

        Args:
            epoch: from 0.
            start: first batch; those before were used already.
            rank: which of `world` equal, consecutive parts of each batch.
            world: number of ranks.

        Raises:
            RecipeError: the batch cannot be divided among the ranks.
            FileError: a case is damaged.
        """
        if self.batch_size % world:
            raise RecipeError(f"batch_size {self.batch_size} cannot be divided among {world} ranks")
        share = self._samples // world
        steps = {
            step: range(step * self._samples + rank * share, step * self._samples + (rank + 1) * share)
            for step in range(start, len(self))
        }
        if not self.workers:
            for step, positions in steps.items():
                batch = self._empty(epoch, step, positions)
                for index, position in enumerate(positions):
                    self._fill(batch, index, position)
                yield batch
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="modistill-loading")
        try:
            # Submitted as they are taken: one batch in use, and enough ahead for every thread to have something to do.
            tasks = (self._submit(pool, self._empty(epoch, step, positions), positions) for step, positions in steps.items())
            ahead = deque(islice(tasks, 1 + -(-self.workers // share)))
            while ahead:
                batch, futures = ahead.popleft()
                for future in futures:
                    future.result()
                ahead.extend(islice(tasks, 1))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _check(self, samples_per_case: int, steps_per_epoch: int) -> None:
        known = self.cohort.plan.preprocessing.modalities
        for name in self.modalities:
            if name not in known:
                raise RecipeError(f"the prepared cases have no {name}", remedy=f"they have {', '.join(known)}")
        for name in self.available:
            if name not in self.modalities:
                raise RecipeError(f"available modality {name} is not among the modalities read")
        if not self.ids:
            raise RecipeError("no case to draw from", remedy="give this part of the split a larger share")
        if self.dims not in (2, 3):
            raise RecipeError(f"dims is {self.dims}", remedy="2 for slices, 3 for volumes")
        if self.patch_size is not None and (len(self.patch_size) != self.dims or min(self.patch_size) < 1):
            raise RecipeError(f"patch_size {list(self.patch_size)} does not fit {self.dims} dimensions")
        numbers = {"batch_size": self.batch_size, "samples_per_case": samples_per_case, "steps_per_epoch": steps_per_epoch}
        for name, value in numbers.items():
            if value < 1:
                raise RecipeError(f"{name} is {value}", remedy="1 or more")
        if not 0 <= self.foreground_fraction <= 1:
            raise RecipeError(f"foreground_fraction is {self.foreground_fraction}", remedy="between 0 and 1")
        if self.foreground not in ("probability", "share"):
            raise RecipeError(f"foreground is {self.foreground}", remedy="probability or share")

    @property
    def _samples(self) -> int:
        """Samples a step, of all domains and ranks."""
        return self.batch_size * len(self._domains)

    def _parts(self, domains: Sequence[Sequence[str]], apart: bool) -> tuple[_Domain, ...]:
        """What each domain is drawn from: the cases that have its modalities, or those of them it is dealt.

        Raises:
            RecipeError: a domain is left without cases, or there are no domains to deal to.
        """
        if apart and not domains:
            raise RecipeError(
                "sampling.apart deals the cases to domains, of which the method has none",
                remedy="leave it out; a method that learns from pairs needs them",
            )
        known = self.cohort.plan.preprocessing.modalities
        channels = [tuple(known.index(name) for name in modalities) for modalities in domains]
        fits = {
            case: [domain for domain, read in enumerate(channels) if all(entry.presence[channel] for channel in read)]
            for case, entry in self._entries.items()
        }
        having = [tuple(case for case in self.ids if domain in fits[case]) for domain in range(len(domains))]
        # By the split, not by the seed: a student's training shows a patient as its teacher's did, whatever their seeds.
        ids = deal(fits, len(domains), int(self.cohort.split.digest, 16)) if apart else having
        for modalities, able, drawn in zip(domains, having, ids, strict=True):
            if not able:
                raise RecipeError(
                    f"none of the {len(self.ids)} training cases has {' and '.join(modalities)}",
                    file=self.cohort.folder,
                    remedy="prepare the cases of all domains as one cohort",
                )
            if not drawn:
                raise RecipeError(
                    f"{len(self.ids)} training cases cannot be dealt to {len(domains)} domains: none is left for"
                    f" {' and '.join(modalities)}",
                    file=self.cohort.folder,
                    remedy="train on more cases, or leave out sampling.apart",
                )
        return tuple(map(_Domain, ids, channels))

    def _case_at(self, epoch: int, position: int) -> str:
        """Dealt from shuffled rounds through all cases of a domain, which run on across epochs; or drawn, each by itself."""
        place, number = divmod(epoch * len(self) * self._samples + position, len(self._domains))
        ids = self._domains[number].ids
        if self.replacement:
            return ids[int(np.random.default_rng([self.seed, _CASE, epoch, position]).integers(len(ids)))]
        order = np.random.default_rng([self.seed, _ORDER, place // len(ids), number]).permutation(len(ids))
        return ids[int(order[place % len(ids)])]

    def _submit(self, pool: ThreadPoolExecutor, batch: Batch, positions: range) -> tuple[Batch, list[Future[None]]]:
        return batch, [pool.submit(self._fill, batch, index, position) for index, position in enumerate(positions)]

    def _empty(self, epoch: int, step: int, positions: range) -> Batch:
        """A batch of zeros for the samples at these positions; each is read right into its place."""
        cases = tuple(self._case_at(epoch, position) for position in positions)
        shape = self._spatial(epoch, step)
        shown = [self._domains[position % len(self._domains)].channels for position in positions]
        return Batch(
            images=torch.zeros(len(cases), len(self.modalities), *shape),
            labels=torch.zeros(len(cases), *shape, dtype=torch.int64),
            presence=torch.tensor(
                [
                    [channel in seen and self._entries[case].presence[channel] for channel in self._channels]
                    for case, seen in zip(cases, shown, strict=True)
                ]
            ),
            modalities=self.modalities,
            available_modalities=self.available,
            cases=cases,
            epoch=epoch,
        )

    def _fill(self, batch: Batch, index: int, position: int) -> None:
        """Read one sample of a batch, change it, and put it into its place."""
        case = batch.cases[index]
        rng = np.random.default_rng([self.seed, _SAMPLE, batch.epoch, position])
        try:
            start, size = self._patch(self._entries[case], position, rng)
            change = self.augmentation.sample(rng) if self.augmentation else None
            if change and self.patch_size:  # beyond a whole case there is nothing
                change = change.for_patch(self.patch_size)
                start, size = widen(start, size, change.margin)
            stored, classes = self.cohort.patch(case, start, size)
            images, labels = torch.from_numpy(stored), torch.from_numpy(classes)
            if self._channels != list(range(len(images))):
                images = images[self._channels]
            if self.dims == 2:
                images, labels = images[..., 0], labels[..., 0]
            if len(self._domains) > 1:
                images = torch.where(batch.presence[index].reshape(-1, *(1,) * labels.ndim), images, 0)
            if change:
                images, labels = change(images.float(), labels)
        except ModistillError as error:
            raise error.at(case) from None
        box = tuple(slice(n) for n in labels.shape)
        batch.images[index][(slice(None), *box)] = images  # copied once, from half to single precision on the way
        batch.labels[index][box] = labels

    def _patch(self, entry: CaseEntry, position: int, rng: np.random.Generator) -> tuple[Triple, Triple]:
        """First corner and size of the patch, in voxels of the prepared case."""
        size = entry.shape if self.patch_size is None else self.patch_size
        size = triple([*size[:2], 1] if self.dims == 2 else size)
        share = self.foreground == "share"
        wanted = self._in_share(position) if share else rng.random() < self.foreground_fraction
        voxel = entry.draw_foreground(rng) if wanted else None
        start = choose_start(entry.shape, size, rng, voxel, central=share)
        if self.dims == 2 and voxel is None:  # a slice of the padding shows nothing
            before, after = (max(0, amount) for amount in entry.geometry.pad[2])
            start = (*start[:2], before + start[2] * (entry.shape[2] - before - after) // entry.shape[2])
        return start, size

    def _in_share(self, position: int) -> bool:
        """Whether this sample is one of the last of its step, and of its domain, whatever the rank."""
        index = position % self._samples // len(self._domains)
        return index >= round(self.batch_size * (1 - self.foreground_fraction))

    def _spatial(self, epoch: int, step: int) -> Sequence[int]:
        """Spatial shape of a batch: that of the patch, or the largest case among the samples of all ranks."""
        if self.patch_size is not None:
            return self.patch_size
        positions = range(step * self._samples, (step + 1) * self._samples)
        shapes = [self._entries[self._case_at(epoch, position)].shape for position in positions]
        return [max(sizes) for sizes in zip(*shapes, strict=True)][: self.dims]
