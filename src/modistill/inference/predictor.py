"""From a patient to a label map: the model that fits what was acquired, on the grid the images came on.

A `Predictor` holds several models and gives each case to the one that makes most of its modalities. A modality that the chosen
model does not read is never opened: it may be absent, damaged or of another grid, the answer is the same to the bit. Where no
model fits, a `Completion` may let something stand in for what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modistill.data.case import Case, not_evidence
from modistill.data.cohort import CaseFiles
from modistill.data.naming import LabelConvention, conventions
from modistill.data.volume import Volume
from modistill.errors import CaseError, LabelError, ModelError, ModistillError, RecipeError
from modistill.hardware import pick_device, pick_precision, tune_allocator
from modistill.inference.model import Model, smallest_size
from modistill.inference.sampling import Ensemble, MCDropout, Mirrored, Once, Sampler, require_dropout, seeded
from modistill.inference.windows import OnWindow, by_slices, sample_windows, within_memory
from modistill.methods.base import AnySubsetMethod, TranslationMethod

if TYPE_CHECKING:
    from modistill.inference.completion import Completion, Substitute

__all__ = ["Prediction", "Predictor", "reduced"]


@dataclass(frozen=True)
class Prediction:
    """What was found in one case.

    Attributes:
        case: id of the case.
        labels: (D, H, W) uint8 on the case's own grid, in the numbers of `convention`.
        convention: that of the case where its layout tells, else the model's.
        probabilities: (C, D, H, W) float32 on the same grid; class 0 is the background.
        used_model: the model that was chosen, or the first member of an ensemble.
        available: the modalities that were read; of these alone, what stands in for others was made.
        reason: why that one.
        notices: what a user should know about the case, one line each.
        uncertainty: name -> map (D, H, W) from 0 (certain) to 100, where it was asked for: one of each region, "entropy" and
            "mutual_information".
        brain: (D, H, W) uint8, 1 in the brain mask, where uncertainty was asked for.
        substitutes: what stood in for modalities that the model reads and the case lacks.
        synthetic_inputs: those of `available` whose image a network made, and no scanner.
    """

    case: str
    labels: Volume
    convention: LabelConvention
    probabilities: NDArray[np.float32]
    used_model: Model
    available: tuple[str, ...]
    reason: str
    notices: tuple[str, ...] = ()
    uncertainty: Mapping[str, Volume] = field(default_factory=dict)
    brain: Volume | None = None
    substitutes: tuple[Substitute, ...] = ()
    synthetic_inputs: tuple[str, ...] = ()

    def region_probabilities(self) -> dict[str, Volume]:
        """Region -> probability (D, H, W) that a voxel belongs to it: the sum over its classes."""
        regions = self.used_model.convention.class_regions
        return {
            name: self.labels.with_voxels(self.probabilities[sorted(classes)].sum(axis=0).clip(0, 1))
            for name, classes in regions.items()
        }


class Predictor:
    """Segments whole cases with the best of several models.

    Args:
        models: in order of preference where two make equally much of a case.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: of the network's arithmetic; "auto" is bf16-mixed where the hardware multiplies bf16, else 32.
        mirror: axes (0, 1, 2) to mirror and average over; None as each model says.
        overlap: of neighbouring windows; None as each model says.
        labels: name of the label convention to answer in; None for that of the case.
        batch: windows in one pass.
        only: the modalities that may be used, whatever else a case has; None for all.
        passes: of Monte-Carlo dropout, averaged; 0 for the network without dropout.
        ensemble: average over all models that read the same of a case, instead of choosing the first.
        seed: of dropout masks, and of what else a method draws.
        uncertainty: also make uncertainty maps, in which 100 is the largest entropy possible; other scales are chosen when the
            maps are scored.
        completion: what stands in for modalities that are missing, used where no model can do with what there is.

    Raises:
        RecipeError: no model, no such device, or two models of one name.
        LabelError: no such label convention, or a model has classes that it lacks.
        ModelError: a model translates and segments nothing, or Monte-Carlo passes asked of a network without dropout.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        device: str = "auto",
        precision: Literal["auto", "32", "bf16-mixed"] = "auto",
        mirror: Sequence[int] | None = None,
        overlap: float | None = None,
        labels: str | None = None,
        batch: int = 1,
        only: Collection[str] | None = None,
        passes: int = 0,
        ensemble: bool = False,
        seed: int = 0,
        uncertainty: bool = False,
        completion: Completion | None = None,
    ) -> None:
        names = [model.name for model in models]
        if not names or len(set(names)) < len(names):
            raise RecipeError(f"models need different names, and at least one; got {', '.join(names) or 'none'}")
        self.models = tuple(models)
        self.device = pick_device(device)
        self.precision = pick_precision(self.device) if precision == "auto" else precision
        self.mirror, self.overlap, self.batch, self.only = mirror, overlap, batch, only
        self.passes, self.ensemble, self.seed, self.uncertainty = passes, ensemble, seed, uncertainty
        self.completion = completion
        self.labels = None if labels is None else _convention_named(labels, self.models)
        tune_allocator()
        for model in self.models:
            if isinstance(model.method, TranslationMethod):
                raise ModelError(
                    f"{model.name} translates into {' or '.join(model.method.targets)} and segments nothing",
                    file=model.source,
                    remedy="modistill translate",
                )
            network = model.method.get_submodule(model.method.deployed).eval().to(self.device)
            if self.device.type == "cuda":
                order = torch.channels_last if model.method.dims == 2 else torch.channels_last_3d
                network.to(memory_format=order)  # type: ignore[call-overload]
            if passes:
                require_dropout(network, model.name)

    def choose(self, available: Collection[str], *, case: str | None = None) -> Model:
        """The model that reads most of what is available; of equals, the one given first.

        Where no model can do with that, the one for which least has to stand in, and of equals the one that reads most.

        Raises:
            CaseError: every model needs something that is not there, nor made; the message lists what the models can serve.
        """
        available = self.allowed(available)
        fitting = [model for model in self.models if model.uses(available)]
        if fitting:
            return max(fitting, key=lambda model: len(model.uses(available)))  # max keeps the first of equals
        completed = [model for model in self.models if self.substitutes(model, available)]
        if completed:
            return min(completed, key=lambda model: (len(_lacking(model, available)), -len(model.reads)))
        lacking = {name for model in self.models for name in _lacking(model, available)}
        demands = [f"{model.name} {model.demand()}" for model in self.models]
        reason = f"has {', '.join(available) or 'nothing'}, lacks {', '.join(sorted(lacking))}: no model can serve that"
        if self.completion is not None:
            reason += ", nor can all of it be made"
            demands.append(self.completion.demand())
        raise CaseError(reason, case=case, remedy="; ".join(demands))

    def substitutes(self, model: Model, available: Collection[str]) -> tuple[Substitute, ...]:
        """What stands in for the modalities a model lacks; none if it needs none, or cannot be served."""
        available = self.allowed(available)
        return () if self.completion is None or model.uses(available) else self.completion.plan(model, available)

    def opened(self, model: Model, available: Collection[str]) -> tuple[str, ...]:
        """Those of a case's modalities that are read for a model: its own, then those from which others are made."""
        allowed = self.allowed(available)
        sources = [name for one in self.substitutes(model, available) for name in one.made_from]
        return tuple(dict.fromkeys([name for name in model.reads if name in allowed] + sources))

    def allowed(self, available: Collection[str]) -> tuple[str, ...]:
        """Those of a case's modalities that may be used."""
        return tuple(name for name in available if self.only is None or name in self.only)

    def why(self, chosen: Model, available: Collection[str], synthetic: Collection[str] = ()) -> str:
        """In words, why a case with these modalities, some of them synthetic, is given to this model."""
        available, made = self.allowed(available), self.substitutes(chosen, available)
        used = tuple(name for name in chosen.reads if name in available)
        named = [f"synthetic {name}" if name in synthetic else name for name in used]
        parts = [f"{chosen.name} reads {', '.join((*named, *(one.words for one in made)))}"]
        together = self.members(chosen, chosen.reads if made else used)
        for other in (model for model in self.models if model not in together):
            if not other.uses(available):
                parts.append(f"{other.name} would need {', '.join(_lacking(other, available))}, which the case lacks")
            elif self.ensemble and other.uses(available) == used:
                parts.append(f"{other.name} reads the same, but prepared otherwise: not averaged")
            else:
                equal = len(other.uses(available)) == len(used)
                parts.append(f"{other.name} fits too, but {'was given later' if equal else 'reads less of it'}")
        if len(together) > 1:
            parts.append(f"averaged over {', '.join(member.name for member in together)}")
        return "; ".join(parts)

    def convention(self, case: Case | CaseFiles, model: Model) -> LabelConvention:
        """The convention a case is answered in: the one asked for, else its own if that has the classes, else the model's."""
        if self.labels is not None:
            return self.labels
        own = None if case.convention is None else conventions.get(case.convention)
        return own if own is not None and not _classes_lacking(model, own) else model.convention

    def settings(self, model: Model, substitutes: Sequence[Substitute] = ()) -> dict[str, Any]:
        """Everything but the images that decides what this predictor answers with a model, as plain values."""
        completed = {"substitutes": self.completion.settings(substitutes)} if self.completion and substitutes else {}
        return completed | {
            "digest": model.digest,
            "window": None if model.window is None else list(model.window),
            "overlap": self._overlap(model),
            "mirror": list(self._mirror(model)),
            "precision": self.precision,
            "preprocessing": model.preprocessing.to_json(),
            "passes": self.passes,
            "seed": self.seed,
            "ensemble": [other.digest for other in self.models] if self.ensemble else None,
            "uncertainty": "theoretical" if self.uncertainty else None,  # what counts 100 in the maps
        }

    def members(self, model: Model, used: tuple[str, ...]) -> tuple[Model, ...]:
        """The models whose answers are averaged: the chosen one and, in an ensemble, all that can stand beside it."""

        def alike(other: Model) -> bool:
            same = (other.preprocessing, other.convention, other.window) == (
                model.preprocessing,
                model.convention,
                model.window,
            )
            return same and other.uses(used) == used

        return tuple(filter(alike, self.models)) if self.ensemble else (model,)

    def predict(self, case: Case | CaseFiles, *, on_window: OnWindow | None = None) -> Prediction:
        """Segment one case.

        Args:
            case: a case in memory, or its files; only the modalities of the chosen model are read, and those from which a
                missing one is made.
            on_window: told how many windows are done.

        Raises:
            CaseError: no model fits the case, an image says nothing, or something would be made from a synthetic one.
            FileError, GeometryError: an image that is needed cannot be used.
            ModelError: the network's output is not finite, or the volume does not fit into memory.
        """
        try:
            model = self.choose(case.modalities)
            substitutes = self.substitutes(model, case.modalities)
            opened = self.opened(model, case.modalities)
            read = reduced(case, opened)
            read.require_real("nothing is made from it", {name for one in substitutes for name in one.made_from})
            reason = self.why(model, case.modalities, read.synthetic)
            return self._predict(read, model, opened, substitutes, reason, on_window)
        except ModistillError as error:
            raise error.at(case.id) from error.__cause__

    def _predict(
        self,
        case: Case,
        model: Model,
        opened: tuple[str, ...],
        substitutes: tuple[Substitute, ...],
        reason: str,
        on_window: OnWindow | None,
    ) -> Prediction:
        preprocessing = model.preprocessing
        if model.any_subset:  # mask and crop rest on what there is
            preprocessing = preprocessing.for_subset(opened)
        if self.completion is not None and substitutes:
            prepared, read = self.completion.prepare(case, preprocessing, substitutes), model.reads
        else:
            prepared, read = preprocessing.apply(case), opened
        members = self.members(model, read)
        maps = self.maps(members, read, prepared.images, on_window)
        classes = len(maps) - self.uncertainty  # the last map is then the mean entropy
        if classes != len(model.convention.values) + 1:
            expected = len(model.convention.values) + 1
            raise ModelError(f"gives {classes} classes, its convention has {expected} with background", file=model.source)
        background = np.eye(len(maps))[0]  # where the crop did not look: certainly background
        restored = preprocessing.restore(maps, prepared.geometry, outside=background)
        probabilities = restored[:classes]
        convention = self.convention(case, model)
        numbers = np.array([0, *(convention.values[name] for name in model.convention.values)], dtype=np.uint8)
        grid = replace(case.grid, synthetic=False)  # no image is made here
        labels = grid.with_voxels(numbers[probabilities.argmax(axis=0)])
        synthetic = case.synthetic
        notices = (*([not_evidence(synthetic)] if synthetic else []), *prepared.notices)
        if prepared.geometry.is_cut:
            notices += ("larger than the size the model reads: what lies outside is called background",)
        size = prepared.geometry.prepared_shape
        if any(n < least for n, least in zip(size, smallest_size(size, model.method), strict=True)):
            notices += (f"only {'x'.join(map(str, size))} voxels: padded with zeros for the network",)
        found = Prediction(case.id, labels, convention, probabilities, model, opened, reason, notices)
        found = replace(found, substitutes=substitutes, synthetic_inputs=synthetic)
        if not self.uncertainty:
            return found
        brain = preprocessing.restore(prepared.mask[None].astype(np.uint8), prepared.geometry)[0]
        return replace(found, uncertainty=_uncertainty(found, restored[classes]), brain=grid.with_voxels(brain))

    def maps(
        self,
        members: Sequence[Model],
        used: tuple[str, ...],
        images: NDArray[np.float32],
        on_window: OnWindow | None = None,
    ) -> NDArray[np.float32]:
        """Mean probabilities on the prepared grid.

        Args:
            members: what is averaged.
            used: the modalities that count, of those that the members read.
            images: (M, D, H, W), prepared; of modalities that do not count, whatever.
            on_window: told how many windows are done.

        Returns:
            (C, D, H, W), and their mean entropy as one more channel where uncertainty is asked for.

        Raises:
            ModelError: the network's output is not finite, or the volume does not fit into memory.
        """
        model = members[0]
        sampler = Mirrored(Ensemble([self._sampler(member, used) for member in members]), self._mirror(model))
        with within_memory(model.window or images.shape[1:], self.device), self._arithmetic(), seeded(self.seed, self.device):
            maps = sample_windows(
                sampler,
                torch.from_numpy(images),
                entropy=self.uncertainty,
                window=model.window,
                overlap=self._overlap(model),
                batch=self.batch,
                minimum=smallest_size(images.shape[1:], model.method),
                device=self.device,
                on_window=on_window,
            )
            return np.asarray(maps.cpu().numpy())

    def _sampler(self, model: Model, used: tuple[str, ...]) -> Sampler:
        """What a model answers to a window of a patient with these modalities."""
        method = model.method
        segment: Callable[[Tensor], Tensor] = method.segment
        if isinstance(method, AnySubsetMethod):
            segment = method.for_patient([name in used for name in model.reads])
        if method.dims == 2:
            segment = by_slices(segment)
        if not self.passes:
            return Once(segment)
        return MCDropout(segment, method.get_submodule(method.deployed), passes=self.passes, seed=self.seed)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()

    def _overlap(self, model: Model) -> float:
        return model.overlap if self.overlap is None else self.overlap

    def _mirror(self, model: Model) -> tuple[int, ...]:
        return tuple(model.mirror if self.mirror is None else self.mirror)


def reduced(case: Case | CaseFiles, modalities: tuple[str, ...]) -> Case:
    """The case with these modalities alone; of files, no others are opened."""
    if isinstance(case, CaseFiles):
        return case.read(modalities, with_labels=False)
    return Case(case.id, {name: case.images[name] for name in modalities}, convention=case.convention)


def _uncertainty(found: Prediction, expected: NDArray[np.float32]) -> dict[str, Volume]:
    """The maps from 0 to 100: of each region, of all classes together, and how much of that is disagreement."""
    from modistill.metrics.uncertainty import entropy, mutual_information, predictive_uncertainty, region_uncertainty

    p = found.probabilities
    maps = {name: region_uncertainty(q.voxels) for name, q in found.region_probabilities().items()}
    maps["entropy"] = predictive_uncertainty(p)
    maps["mutual_information"] = mutual_information(entropy(p), expected, len(p))
    return {name: found.labels.with_voxels(values.astype(np.float32)) for name, values in maps.items()}


def _lacking(model: Model, available: Collection[str]) -> list[str]:
    return [name for name in model.reads if name not in available]


def _classes_lacking(model: Model, convention: LabelConvention) -> list[str]:
    return [name for name in model.convention.values if name not in convention.values]


def _convention_named(name: str, models: Sequence[Model]) -> LabelConvention:
    if name not in conventions:
        raise LabelError(f"unknown label convention {name!r}", remedy=f"known: {', '.join(conventions)}")
    for model in models:
        if lacking := _classes_lacking(model, conventions[name]):
            raise LabelError(f"{name} has no label for {', '.join(lacking)}, which {model.name} finds")
    return conventions[name]
