"""What a translation has to beat: the source as it is, and a constant; scored as `modistill evaluate-translations` scores.

    python benchmarks/translation_references.py RUN TRAIN TEST OUTPUT
    python benchmarks/translation_references.py RUN TRAIN TEST OUTPUT --translations utad/translations/0/a utad/translations/1/a

RUN is a trained translation of any sequence into any other, for its normalisation and slices. The constant is the mean of the
target inside the brain over the patients of TRAIN, on the scale from 0 to 1: nothing of the test patient is in it.

Of folders that `modistill translate --pairs` wrote it also says how alike the images are that were made of one source for
different targets: their correlation over the brain, mean of patients, sources and pairs of targets. Of a network that does not
look at what is wanted it is 1. Beside it stands that of the real images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from modistill.data.folder import find_cases
from modistill.data.nifti import read_volume
from modistill.evaluation.synthesis import PAIR
from modistill.evaluation.translations import evaluate_translations, real_on_scale
from modistill.inference.cohort import translate_cohort
from modistill.inference.model import Model
from modistill.inference.outputs import TranslationFolder
from modistill.inference.translator import Translator
from modistill.methods.base import TranslationMethod, Turn
from modistill.runs import load_model


class Reference(TranslationMethod):
    """Makes an image of the source and the name of the target, without having learnt anything."""

    deployed, dims = "network", 2

    def __init__(self, modalities: tuple[str, ...], make: Callable[[Tensor, str], Tensor]) -> None:
        super().__init__()
        self.reads, self.targets, self.players = {"network": modalities}, modalities, {}
        self.network, self.make = nn.Identity(), make

    def losses(self, batch: object) -> Iterator[Turn]:
        """None: there is nothing to learn."""
        return iter(())

    def translate(self, images: Tensor, target: str) -> Tensor:
        """See `TranslationMethod`."""
        return self.make(images[:, :1], target)


def brain_means(model: Model, train: Path) -> dict[str, float]:
    """Of each target the mean over patients of the mean over their brains, on its scale."""
    means: dict[str, list[float]] = {name: [] for name in model.targets}
    for files in find_cases(train).cases:
        case = files.read(tuple(name for name in means if name in files.images))
        for name, image in case.images.items():
            shown = real_on_scale(image, name, model.targets[name]).voxels
            means[name].append(float(shown[shown > 0].mean()))
    return {name: float(np.mean(values)) for name, values in means.items()}


def score(name: str, model: Model, make: Callable[[Tensor, str], Tensor], test: Path, output: Path) -> None:
    """Make all pairs of the test patients, and print their scores: mean and deviation over patients of the mean of pairs."""
    reference = replace(model, name=name, digest=name, method=Reference(tuple(model.reads), make).eval(), window=None)
    for source, target in reference.pairs:
        translator = Translator(reference, target, source, device="cpu")
        with TranslationFolder(output / name / f"{source}{PAIR}{target}", target, "overwrite").opened() as folder:
            rows = list(translate_cohort(translator, find_cases(test).cases, folder))
        if failed := [row for row in rows if row.status == "failed"]:
            raise SystemExit(f"{failed[0]}")
    means = evaluate_translations(output / name, test, body_above=0.0).scores.averaged()
    for region in means.regions:
        found = {}
        for metric in ("psnr", "ssim", "nmae"):
            values = [row.value for row in means.rows if (row.region, row.metric) == (region, metric)]
            found[metric] = np.array(values)[~np.isnan(values)]
        told = ", ".join(f"{metric} {values.mean():.3f} ± {values.std(ddof=1):.3f}" for metric, values in found.items())
        print(f"{name}, {region}: {told} (n = {found['psnr'].size})", flush=True)


def alike(images: Mapping[str, np.ndarray], brain: np.ndarray) -> list[float]:
    """Correlations over the brain of every two images."""
    return [float(np.corrcoef(one[brain], other[brain])[0, 1]) for one, other in combinations(images.values(), 2)]


def likeness(model: Model, test: Path, folder: Path | None) -> float:
    """Mean correlation of what was made of one source for different targets; of the real images without a folder."""
    found: list[float] = []
    for files in find_cases(test).cases:
        case = files.read(tuple(model.reads))
        real = {name: real_on_scale(image, name, model.targets[name]).voxels for name, image in case.images.items()}
        brain = np.any([image > 0 for image in real.values()], axis=0)
        if folder is None:
            found += alike(real, brain)
            continue
        for source in model.reads:
            places = {b: folder / f"{a}{PAIR}{b}" / files.id / f"{files.id}_{b}.nii.gz" for a, b in model.pairs if a == source}
            found += alike({target: read_volume(place).voxels for target, place in places.items()}, brain)
    return float(np.mean(found))


def main() -> None:
    """See the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--translations", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    model = load_model(options.run)
    means = brain_means(model, options.train)
    print("constants:", ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
    score("source", model, lambda images, target: images, options.test, options.output)
    score("constant", model, lambda images, target: torch.full_like(images, means[target]), options.test, options.output)
    print(f"images of different targets correlate by {likeness(model, options.test, None):.2f} (real)")
    for folder in options.translations:
        print(f"images of different targets correlate by {likeness(model, options.test, folder):.2f} ({folder})")


if __name__ == "__main__":
    main()
