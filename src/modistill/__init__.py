"""Cross-modality knowledge distillation in medical images.

Train with every sequence you have. Predict with whatever the patient has.

Notation in all docstrings: `B` batch, `M` modalities, `A` available ones, `C` classes, `R` regions, `D H W` voxels (left ->
right, posterior -> anterior, inferior -> superior). The names below are loaded when they are used: importing the package is
cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Batch": "data.batch",
    "Case": "data.case",
    "Loader": "data.loading",
    "Method": "methods.base",
    "Model": "inference.model",
    "ModistillError": "errors",
    "Prediction": "inference.predictor",
    "Predictor": "inference.predictor",
    "PreparedCohort": "data.store",
    "Preprocessing": "data.preprocessing",
    "Protocol": "evaluation.protocol",
    "Regions": "data.regions",
    "TrainingSettings": "training",
    "Translation": "inference.translator",
    "Translator": "inference.translator",
    "Volume": "data.volume",
    "compare": "evaluation.comparison",
    "evaluate_folders": "evaluation.folders",
    "evaluate_translations": "evaluation.translations",
    "find_cases": "data.folder",
    "fit": "training",
    "load_model": "runs",
    "load_recipe": "recipe",
    "phantom_case": "phantom.patient",
    "prepare": "data.preparing",
    "train": "runs",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'modistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"modistill.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
