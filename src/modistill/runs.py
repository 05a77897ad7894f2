"""From a recipe to a run folder, and from a run folder to a model that predicts.

A run folder holds `recipe.yaml` (every default spelled out), `environment.json`, `split.json`, `log.csv`, `progress.png`,
`checkpoints/`, and `model.safetensors` + `model.json`: the deployable network with its card.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from modistill.arguments import takes
from modistill.checkpoints import Checkpoints
from modistill.data.augmentation import augmentations
from modistill.data.loading import Loader
from modistill.data.naming import conventions
from modistill.data.normalisation import spell
from modistill.data.preprocessing import Preprocessing
from modistill.data.splits import Split
from modistill.data.store import Plan, PreparedCohort
from modistill.errors import FileError, ModelError, RecipeError, TrainingStopped
from modistill.files import run_lock, write_json
from modistill.inference.model import Model, smallest_size
from modistill.inference.windows import by_slices, predict_windows
from modistill.methods import load_method
from modistill.methods.base import AnySubsetMethod, Method, TranslationMethod
from modistill.metrics.overlap import dice
from modistill.recipe import Inference, MethodChoice, Recipe, build, check, load_recipe, save_recipe
from modistill.training import Status, TrainingSettings, fit
from modistill.warm_start import start_from
from modistill.weights import load_weights, save_weights

if TYPE_CHECKING:
    from modistill.data.regions import Regions

__all__ = ["build_method", "load_model", "resolve", "train"]

MODEL = "model.safetensors"


def train(
    recipe: Recipe,
    prepared: Path,
    output: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    tensorboard: bool = False,
    report: Callable[[Status], None] | None = None,
) -> Method:
    """Train what a recipe says on prepared cases; everything worth keeping goes into the run folder.

    Args:
        recipe: the experiment.
        prepared: folder written by `modistill prepare`.
        output: the run folder; new, or to be resumed.
        resume: go on from the newest checkpoint there.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        tensorboard: also log to `output/tensorboard`.
        report: told after every step.

    Raises:
        RecipeError: the recipe does not fit the method or the prepared cases.
        ModelError: weights to start from are damaged or of another network, or there is nothing to resume.
        FileError: the run folder is taken, holds something else, or cannot be written.
        TrainingStopped: see `modistill.training.fit`; or a disk that is full.
    """
    settings = check(TrainingSettings, recipe.training, "training")
    cohort = PreparedCohort(prepared)
    cohort.verify()
    _require_same_data(recipe, cohort.plan, prepared)
    recipe = resolve(recipe, cohort.plan)
    torch.manual_seed(settings.seed)
    method = build_method(recipe)
    _require_modalities(method, cohort)
    if resume and not (output / "recipe.yaml").is_file():
        raise ModelError("no run here to resume", file=output, remedy="leave out --resume to begin one")
    if not resume:
        start_from(method, recipe, output, cohort)
        method.begin()
    with run_lock(output):
        _open(output, recipe, cohort, method, resume)
        with _stops():
            return fit(
                method,
                _loader(recipe, cohort, method, settings.seed),
                output,
                settings,
                validate=_validation(recipe, cohort, method),
                on_best=lambda best, score, epoch: _deploy(best, score, epoch, recipe, cohort, output),
                report=_with_picture(output, report),
                resume=resume,
                device=device,
                loggers=_loggers(output) if tensorboard else (),
            )


@contextmanager
def _stops() -> Iterator[None]:
    """Once a training runs, a file that fails and memory that is full stop it, with the exit code that says so."""
    try:
        yield
    except FileError as error:
        raise TrainingStopped(error.reason, file=error.file, remedy=error.remedy) from error
    except torch.OutOfMemoryError as error:
        raise TrainingStopped("the GPU's memory is full", remedy="smaller sampling.patch_size or method.width") from error


def resolve(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe with everything filled in that follows from cohort and training: classes, class weights, sequences, length."""
    constructor, arguments = load_method(recipe.method.name), recipe.method.arguments
    for name in ("available", "modalities"):
        if arguments.get(name) == "available":  # so that one key of a recipe, data.available, chooses them
            arguments[name] = list(recipe.data.available or recipe.data.modalities)
    if takes(constructor, "classes"):
        arguments.setdefault("classes", len(conventions[plan.convention].values) + 1)
    if takes(constructor, "epochs"):
        arguments.setdefault("epochs", check(TrainingSettings, recipe.training, "training").epochs)
    if takes(constructor, "side") and recipe.sampling.patch_size and len(set(recipe.sampling.patch_size)) == 1:
        arguments.setdefault("side", recipe.sampling.patch_size[0])
    if arguments.get("class_weights") == "computed":
        arguments["class_weights"] = [round(float(weight), 4) for weight in plan.class_weights]
    return recipe.model_copy(update={"method": MethodChoice(name=recipe.method.name, **arguments)})


def build_method(recipe: Recipe) -> Method:
    """The method of a resolved recipe, with its initial weights."""
    return build(load_method(recipe.method.name), recipe.method.arguments, "method")


def load_model(run: Path) -> Model:
    """The deployable part of a run: only the network that segments is built, the rest stays without memory.

    Raises:
        ModelError: no model there, a damaged one, or one that this version cannot build.
    """
    path = run / MODEL if run.is_dir() else run
    tensors, card = load_weights(path)
    try:
        arguments = dict(card["method"])
        constructor = load_method(arguments.pop("name"))
        with torch.device("meta"):
            method = build(constructor, arguments, "method", call=constructor.for_inference)
        method.get_submodule(method.deployed).load_state_dict(tensors, strict=True, assign=True)
        preprocessing = Preprocessing.from_json(card["preprocessing"])
        inference = Inference.model_validate(card["inference"])
        return Model(
            name=card["name"],
            method=method.eval(),
            preprocessing=preprocessing,
            convention=conventions[card["convention"]],
            window=inference.window,
            overlap=inference.overlap,
            mirror=inference.mirror,
            targets={name: Preprocessing.from_json(how) for name, how in card.get("targets", {}).items()},
            source=path,
            digest=card["digest"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError, RecipeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"cannot be built by this version: {reason}", file=path, remedy="use the version it names") from error


def _require_same_data(recipe: Recipe, plan: Plan, prepared: Path) -> None:
    made = plan.preprocessing
    for name in ("modalities", "available", "normalisation", "spacing_mm", "size", "within", "n4"):
        wanted, found = getattr(recipe.data, name), getattr(made, name)
        if name == "available":
            wanted = wanted or recipe.data.modalities
        if wanted != found:
            raise RecipeError(
                f"data.{name} is {_text(wanted) or 'none'}, the prepared cases were made with {_text(found) or 'none'}",
                file=prepared,
                remedy="prepare them with this recipe",
            )


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return spell(value)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _require_modalities(method: Method, cohort: PreparedCohort) -> None:
    """Refuse a cohort that lacks what the method reads: as a whole, or in cases of a method that needs everything."""
    prepared = cohort.plan.preprocessing.modalities
    foreign = [name for name in method.modalities if name not in prepared]
    if foreign:
        raise RecipeError(f"method reads {', '.join(foreign)}, the prepared cases hold {', '.join(prepared)}")
    if method.domains and (absent := [name for name in method.available if name not in cohort.plan.preprocessing.available]):
        raise RecipeError(
            f"patients are to be served with {', '.join(method.available)}, the prepared cases are for patients without"
            f" {', '.join(absent)}",
            remedy=f"prepare for --available {','.join(method.available)}, or swap the method's modalities",
        )
    if isinstance(method, AnySubsetMethod) or method.domains:
        return
    read = [prepared.index(name) for name in method.modalities]
    used = (*cohort.ids("train"), *cohort.ids("validation"))
    if lacking := [case for case in used if not all(cohort.entry(case).presence[index] for index in read)]:
        case = lacking[0]
        names = ", ".join(prepared[index] for index in read if not cohort.entry(case).presence[index])
        raise RecipeError(
            f"{len(lacking)} of {len(used)} cases lack what the method reads, such as {case}: {names}",
            file=cohort.folder,
            remedy="leave them out of the split, or train a method of any subset (see `modistill methods`)",
        )


def _open(output: Path, recipe: Recipe, cohort: PreparedCohort, method: Method, resume: bool) -> None:
    """Make the folder's records, or see that a resumed run is the same experiment."""
    if resume:
        if Split.load(output / "split.json").digest != cohort.split.digest:
            raise RecipeError(
                "the prepared cases are split otherwise than those of the run", file=cohort.folder, remedy="resume with its own"
            )
        before, now = _identity(load_recipe(output / "recipe.yaml")), _identity(recipe)
        if differing := [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]:
            key = min(differing)
            raise RecipeError(
                f"this recipe differs from the run's own: {key} is {now.get(key)}, was {before.get(key)}",
                file=output / "recipe.yaml",
                remedy="only training.epochs may change",
            )
    elif Checkpoints(output / "checkpoints").exists() or (output / MODEL).exists():
        raise FileError("holds a run already", file=output, remedy="--resume to go on, or choose another folder")
    elif not (output / "recipe.yaml").exists() and any(not path.name.startswith(".") for path in output.iterdir()):
        raise FileError("holds other files, and no run", file=output, remedy="choose a new or empty folder")
    save_recipe(recipe, output / "recipe.yaml")
    write_json(output / "environment.json", _environment() | method.record())
    write_json(output / "split.json", cohort.split.to_json())


def _identity(recipe: Recipe) -> dict[str, Any]:
    content = recipe.model_dump(mode="json", exclude={"about", "start_from", "controls"})
    content["training"].pop("epochs", None)
    sections = {name: part if isinstance(part, dict) else {"": part} for name, part in content.items()}
    return {f"{name}.{key}".rstrip("."): value for name, part in sections.items() for key, value in part.items()}


def _environment() -> dict[str, Any]:
    packages = ("modistill", "torch", "numpy", "monai", "nibabel", "blosc2", "lightning-fabric")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: metadata.version(name) for name in packages},
    }


def _loader(recipe: Recipe, cohort: PreparedCohort, method: Method, seed: int) -> Loader:
    sampling = recipe.sampling
    return Loader(
        cohort,
        cohort.ids("train"),
        modalities=method.modalities,
        available=method.available,
        batch_size=sampling.batch_size,
        patch_size=sampling.patch_size,
        samples_per_case=sampling.samples_per_case,
        steps_per_epoch=sampling.steps_per_epoch,
        foreground_fraction=sampling.foreground_fraction,
        foreground=sampling.foreground,
        augmentation=augmentations[sampling.augmentation],
        seed=seed,
        workers=sampling.workers,
        dims=method.dims,
        domains=method.domains,
        apart=sampling.apart,
    )


def _validation(recipe: Recipe, cohort: PreparedCohort, method: Method) -> Callable[[Method], Mapping[str, float]] | None:
    """Dice of whole validation cases; "score" is its mean over regions, as HAD-Net selects its checkpoints.

    The Dice here is smoothed by one voxel as theirs, so that it is defined for a case without enhancing tumour.
    """
    if isinstance(method, TranslationMethod) or method.targets:
        return None  # what translates is kept as it is in the end
    channels = [cohort.plan.preprocessing.modalities.index(name) for name in method.available]
    any_subset = isinstance(method, AnySubsetMethod)
    ids = [case for case in cohort.ids("validation") if any_subset or all(cohort.entry(case).presence[c] for c in channels)]
    if not ids:
        return None
    regions = conventions[cohort.plan.convention].class_regions
    at_test_time = cohort.plan.preprocessing.available
    inference = recipe.inference

    def validate(trained: Method) -> dict[str, float]:
        scores = []
        device = next(trained.parameters()).device
        for case in ids:
            prepared = cohort.read(case)
            images = torch.from_numpy(prepared.images[channels])
            has = [
                bool(there) and name in at_test_time
                for name, there in zip(method.available, prepared.presence[channels], strict=True)
            ]
            segment = trained.for_patient(has) if isinstance(trained, AnySubsetMethod) else trained.segment
            found = predict_windows(
                segment if trained.dims == 3 else by_slices(segment),
                images,
                window=inference.window,
                overlap=inference.overlap,
                mirror=inference.mirror,
                minimum=smallest_size(images.shape[1:], method),
                device=device,
            )
            scores.append(_region_dice(found.argmax(0).cpu().numpy(), prepared.labels, regions))
        means = np.mean(scores, axis=0)
        return {"score": float(means.mean()), **{f"dice/{name}": float(m) for name, m in zip(regions, means, strict=True)}}

    return validate


def _region_dice(found: Any, reference: Any, regions: Regions) -> list[float]:
    pairs = zip(regions.encode(found), regions.encode(reference), strict=True)
    return [dice(one, other, smooth=1.0) for one, other in pairs]


def _deploy(method: Method, score: float, epoch: int, recipe: Recipe, cohort: PreparedCohort, output: Path) -> None:
    """Write the network that segments or translates, with everything a stranger needs to use it."""
    plan = cohort.plan
    kept = tuple(name for name in plan.preprocessing.available if name in method.available) or method.available
    preprocessing = replace(plan.preprocessing, modalities=method.available, available=kept)
    card = {
        "name": output.resolve().name,
        "about": recipe.about,
        "method": recipe.method.model_dump(mode="json"),
        "network": method.deployed,
        "reads": list(method.available),
        "trained_with": list(method.modalities),
        "classes": ["background", *plan.classes],
        "convention": plan.convention,
        "preprocessing": preprocessing.to_json(),
        "targets": {name: plan.preprocessing.alone(name).to_json() for name in method.targets},
        "inference": recipe.inference.model_dump(mode="json"),
        "validation_score": score if np.isfinite(score) else None,
        "epoch": epoch,
        "training_cases": len(cohort.ids("train")),
        "seed": recipe.training.get("seed", 0),
        "versions": _environment()["packages"],
    }
    save_weights(output / MODEL, method.get_submodule(method.deployed).state_dict(), card)


def _with_picture(output: Path, report: Callable[[Status], None] | None) -> Callable[[Status], None]:
    """Tell the caller, and redraw `progress.png` at the end of an epoch, at most once a minute and at the very end."""
    import time

    from modistill.report.figures import plot_progress

    drawn = 0.0

    def told(status: Status) -> None:
        nonlocal drawn
        if report is not None:
            report(status)
        if not status.batch and (time.monotonic() - drawn > 60 or status.epoch == status.epochs):
            plot_progress(output / "log.csv", output / "progress.png")
            drawn = time.monotonic()

    return told


def _loggers(output: Path) -> tuple[Any, ...]:
    from lightning_fabric.loggers import TensorBoardLogger

    try:
        return (TensorBoardLogger(output, name="tensorboard", version=""),)
    except ModuleNotFoundError as error:
        raise RecipeError("TensorBoard is not installed", remedy="pip install 'modistill[tensorboard]'") from error
