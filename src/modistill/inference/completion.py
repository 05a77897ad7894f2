"""What stands in for a sequence that a model reads and a patient lacks.

- `Translated`: a trained translation makes its image from one that was acquired, before preprocessing; it is then prepared as a
  real one would be.
- `Fill`: after preprocessing, its channel c holds one number inside the mask Omega, 0 elsewhere. With R the acquired sequences
  that the model reads and x_r their prepared images:

      "zero"   c(v) = 0
      "mean"   c(v) = 1/|R| sum_{r in R} 1/|Omega| sum_{u in Omega} x_r(u)

  Both tell what a translation is worth. (Of z-scores the mean is 0: "mean" and "zero" are then nearly the same.)

Mask, crop and grid rest on what was acquired, whatever stands in for the rest. Only what may be used is looked at: the real
image of a sequence that is held back is never opened, nor is anything made from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from modistill.data.case import Case, not_evidence
from modistill.data.preprocessing import Prepared, Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError, ModelError, RecipeError
from modistill.inference.model import Model
from modistill.inference.predictor import reduced
from modistill.inference.translator import Translator
from modistill.methods.base import TranslationMethod

__all__ = ["FILLS", "Completion", "Fill", "Substitute", "Translated", "header"]

FILLS = ("zero", "mean")
_HEADER = 79  # characters that the header of a NIfTI file keeps


@dataclass(frozen=True)
class Substitute:
    """What stands in for one sequence of one case.

    Attributes:
        modality: the sequence.
        by: name of the run that translates, or the fill, "zero" or "mean".
        made_from: the acquired sequences it is made from.
        digest: SHA-256 of the run's weights; "" of a fill.

    Example:
        >>> print(Substitute("t1ce", "cyclegan", ("t1",), "0123"))
        t1ce is synthetic (by cyclegan from t1): not evidence of enhancement
        >>> print(Substitute("t2", "mean", ("flair", "t1")))
        t2 is missing: its channel is the mean of flair, t1 inside the mask
    """

    modality: str
    by: str
    made_from: tuple[str, ...] = ()
    digest: str = ""

    @property
    def is_fill(self) -> bool:
        """Whether a number stands in, and no image."""
        return not self.digest and self.by in FILLS

    @property
    def words(self) -> str:
        """What a network reads in its place."""
        return f"{self.modality} filled with {self.by}" if self.is_fill else f"synthetic {self.modality} (by {self.by})"

    def __str__(self) -> str:
        if not self.is_fill:
            return not_evidence([self.modality], f"by {self.by} from {'+'.join(self.made_from)}")
        value = f"the mean of {', '.join(self.made_from)} inside the mask" if self.by == "mean" else "0 everywhere"
        return f"{self.modality} is missing: its channel is {value}"

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the record of a case."""
        return {**asdict(self), "synthetic": not self.is_fill, "warning": str(self)}


def header(substitutes: Sequence[Substitute], synthetic_inputs: Sequence[str] = ()) -> str:
    """What the header of a label map says of them, in the 79 characters there are; "" if there are none.

    Example:
        >>> header([Substitute(name, "utad_net_student", ("flair",), "0123") for name in ("t1ce", "t1")])
        't1ce, t1 are synthetic: not evidence of enhancement'
        >>> header([Substitute("t1", "zero")], ["t2"])
        't2 is synthetic: not evidence; t1 is missing: its channel is 0 everywhere'
    """
    told = [not_evidence(synthetic_inputs)] if synthetic_inputs else []
    whole = "; ".join([*told, *map(str, substitutes)])
    if len(whole) <= _HEADER:
        return whole
    if synthetic := [*synthetic_inputs, *(one.modality for one in substitutes if not one.is_fill)]:
        return not_evidence(synthetic)  # what was filled has to be left to the record
    filled = [one.modality for one in substitutes]
    return f"{', '.join(filled)} {'are' if len(filled) > 1 else 'is'} missing, their channels filled"


class Completion(ABC):
    """Gives models what they read and a case lacks.

    Args:
        models: the segmentors.

    Attributes:
        sources: the sequences that it can make something from, beside those the models read.

    Raises:
        RecipeError: all of them read any subset, so that none lacks anything.
    """

    sources: tuple[str, ...] = ()

    def __init__(self, models: Sequence[Model]) -> None:
        self.needing = tuple(model for model in models if not model.any_subset)
        if not self.needing:
            names = ", ".join(model.name for model in models)
            raise RecipeError(f"nothing to complete: {names} reads whatever a case has", remedy="leave --complete-with out")

    @abstractmethod
    def plan(self, model: Model, available: Collection[str]) -> tuple[Substitute, ...]:
        """What would stand in for all that the model reads and is not available; empty if something stays missing."""

    @abstractmethod
    def prepare(self, case: Case, preprocessing: Preprocessing, substitutes: Sequence[Substitute]) -> Prepared:
        """The case as a network reads it, complete.

        Args:
            case: with the sequences that may be used, and no others.
            preprocessing: of the model.
            substitutes: as planned.

        Raises:
            CaseError: an image says nothing.
            ModelError: a translation cannot be used.
        """

    @abstractmethod
    def demand(self) -> str:
        """What it makes of what, in words."""

    @abstractmethod
    def settings(self, substitutes: Sequence[Substitute]) -> list[dict[str, Any]]:
        """Everything but the images that decides what stands in, as plain values."""


class Fill(Completion):
    """A number stands in.

    Args:
        how: "zero" or "mean".
        models: see `Completion`.
    """

    def __init__(self, how: str, models: Sequence[Model]) -> None:
        super().__init__(models)
        if how not in FILLS:
            raise RecipeError(f"no fill {how!r}", remedy=f"{' or '.join(FILLS)}, or the run folder of a translation")
        self.how = how

    def plan(self, model: Model, available: Collection[str]) -> tuple[Substitute, ...]:
        """See `Completion`; something the model reads must be there."""
        there = tuple(name for name in model.reads if name in available)
        made_from = there if self.how == "mean" else ()
        return tuple(Substitute(name, self.how, made_from) for name in model.reads if name not in there) if there else ()

    def prepare(self, case: Case, preprocessing: Preprocessing, substitutes: Sequence[Substitute]) -> Prepared:
        """See `Completion`."""
        prepared = preprocessing.for_subset(case.modalities).apply(case)  # what is missing is a channel of zeros
        if self.how == "mean":
            # Over all images at once: each has as many voxels in the mask, so this is the mean of their means.
            level = prepared.images[prepared.presence][:, prepared.mask].mean(dtype=np.float64)
            prepared.images[~prepared.presence] = np.where(prepared.mask, np.float32(level), 0)
        return replace(prepared, notices=(*map(str, substitutes), *prepared.notices))

    def demand(self) -> str:
        """See `Completion`."""
        return f"{self.how} stands in beside a sequence that is read"

    def settings(self, substitutes: Sequence[Substitute]) -> list[dict[str, Any]]:
        """See `Completion`."""
        return [asdict(one) for one in substitutes]


class Translated(Completion):
    """A synthetic image stands in.

    Args:
        runs: trained translations; of two that make the same, the first that finds what it reads.
        models: see `Completion`; what none of them reads is not made.
        sources: by the name of a run, what it may make images from, the first first; without, all it reads in its own order.
        device: see `Translator`.
        seed: see `Translator`.

    Raises:
        ModelError: a run translates nothing, or a segmentor reads a sequence in other units than it is made in.
        RecipeError: a run makes nothing that a model reads, does not read what it should make that from, or two have one name.
    """

    def __init__(
        self,
        runs: Sequence[Model],
        models: Sequence[Model],
        sources: Mapping[str, Sequence[str]] | None = None,
        *,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(models)
        if not runs or len({run.name for run in runs}) < len(runs):
            names = ", ".join(run.name for run in runs)
            raise RecipeError(f"translations need different names, and at least one; got {names or 'none'}")
        wanted = tuple(dict.fromkeys(name for model in self.needing for name in model.reads))
        self.translators: dict[tuple[str, str], Translator] = {}  # by target and run
        for run in runs:
            chosen, targets = (sources or {}).get(run.name), self._targets(run, wanted)
            # What is made from itself alone is left to others; a run that can make nothing else is refused by its translator.
            for target in [name for name in targets if {*(chosen or ())} != {name}] or targets:
                self.translators[target, run.name] = Translator(run, target, chosen, device=device, seed=seed)
        self.sources = tuple(dict.fromkeys(name for one in self.translators.values() for name in one.sources))

    def _targets(self, run: Model, wanted: Collection[str]) -> tuple[str, ...]:
        """What a run makes and the segmentors read."""
        if not isinstance(run.method, TranslationMethod):
            raise ModelError(f"{run.name} segments and translates nothing", file=run.source, remedy="give a translation")
        targets = tuple(name for name in run.method.targets if name in wanted)
        if not targets:
            raise RecipeError(
                f"{run.name} makes {', '.join(run.method.targets)}, which no model needs",
                remedy=f"they read {', '.join(wanted)}",
            )
        for model in self.needing:
            for target in targets:
                if target in model.reads:
                    _require_units(run, model, target)
        return targets

    def plan(self, model: Model, available: Collection[str]) -> tuple[Substitute, ...]:
        """See `Completion`."""
        found = [self._first(name, available) for name in model.reads if name not in available]
        return tuple(one for one in found if one is not None) if None not in found else ()

    def _first(self, modality: str, available: Collection[str]) -> Substitute | None:
        """By the first translation that makes it from something there."""
        for (target, name), translator in self.translators.items():
            if target == modality:
                try:
                    source = translator.require_source(available)
                except CaseError:
                    continue
                return Substitute(modality, name, source, translator.model.digest)
        return None

    def prepare(self, case: Case, preprocessing: Preprocessing, substitutes: Sequence[Substitute]) -> Prepared:
        """See `Completion`."""
        acquired = tuple(name for name in preprocessing.modalities if name in case.modalities)
        images, notices = dict(case.images), [*map(str, substitutes)]
        for one in substitutes:
            made = self.translators[one.modality, one.by].translate(reduced(case, one.made_from))
            _require_contrast(made.image, one)
            images[one.modality] = made.image
            notices += [f"synthetic {one.modality}: {notice}" for notice in made.notices]
        completed = replace(case, images=images)
        # A synthetic image may be 0 inside the brain. Where nothing that the model reads was acquired, it has to do.
        prepared = preprocessing.for_subset(acquired or completed.modalities).apply(completed)
        return replace(prepared, notices=(*notices, *prepared.notices))

    def demand(self) -> str:
        """See `Completion`."""
        makes = ((run, target, " or ".join(one.sources)) for (target, run), one in self.translators.items())
        return "; ".join(f"{run} makes {target} from {sources}" for run, target, sources in makes)

    def settings(self, substitutes: Sequence[Substitute]) -> list[dict[str, Any]]:
        """See `Completion`."""
        return [asdict(one) | {"settings": self.translators[one.modality, one.by].settings()} for one in substitutes]


def _require_units(run: Model, model: Model, target: str) -> None:
    """Refuse an image from 0 to 1 where a segmentor normalises by a window, in HU say.

    Raises:
        ModelError: it does.
    """
    made, read = (how.normalisation_of(target) for how in (run.targets[target], model.preprocessing))
    if isinstance(made, str) and not isinstance(read, str):
        raise ModelError(
            f"{run.name} makes {target} on a scale from 0 to 1, {model.name} reads it from {read[0]:g} to {read[1]:g}",
            file=run.source,
            remedy="train a translation whose target is normalised by a window",
        )


def _require_contrast(image: Volume, made: Substitute) -> None:
    """Refuse a synthetic image that shows one value in a background of another: normalisation would call it damaged.

    Raises:
        ModelError: it does.
    """
    shown = image.voxels[image.voxels > image.voxels.min()]
    if not shown.size or shown.min() == shown.max():
        raise ModelError(f"{made.by} makes a constant {made.modality}", remedy="look at what it makes (modistill translate)")
