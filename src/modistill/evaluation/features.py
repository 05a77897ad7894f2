"""How far features set tumour and background apart: a picture, and two numbers.

Jiang et al., CMEDL (IEEE TMI 2022, https://arxiv.org/abs/2107.07985), show t-SNE maps (van der Maaten and Hinton, JMLR
9:2579, 2008, https://jmlr.org/papers/v9/vandermaaten08a.html) of the last features, with perplexity 60 and 1000 iterations.
How features are scaled beforehand is not said: here each is z-scored over the sample, and principal components, at most 50,
are mapped. The map keeps neighbours and no distances, so it proves nothing; these two numbers, which the paper does not
give, are of the features themselves:

- silhouette of tumour against background (Rousseeuw, J. Comput. Appl. Math. 20:53, 1987,
  https://doi.org/10.1016/0377-0427(87)90125-7), Euclidean, of the principal components: -1 to 1, 0 where nothing is apart;
- area under the ROC curve of a linear probe, a logistic regression from the z-scored features, in patients that it was not
  fitted to: the mean over folds, none of which shares a patient with another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.data.splits import patient_of
from modistill.errors import CaseError, RecipeError

__all__ = ["Separation", "embed", "require_scikit_learn", "separation"]

_COMPONENTS = 50
_FOLDS = 5
_MOST_FOR_SILHOUETTE = 10_000  # voxels: it takes quadratic time


@dataclass(frozen=True)
class Separation:
    """How far tumour and background lie apart.

    Attributes:
        silhouette: -1 to 1.
        probe_auc: of the linear probe, 0 to 1; None for a single patient.
        folds: of its cross-validation.
    """

    silhouette: float
    probe_auc: float | None
    folds: int


def require_scikit_learn() -> None:
    """Refuse to begin without scikit-learn.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise RecipeError("scikit-learn is not installed", remedy="pip install 'modistill[analysis]'") from error


def separation(features: NDArray[Any], tumour: NDArray[np.bool_], cases: NDArray[np.str_], *, seed: int = 0) -> Separation:
    """Silhouette and linear probe.

    Args:
        features: (N, F).
        tumour: (N,), of both kinds in every case.
        cases: (N,) ids; all examinations of a patient fall into one fold (`modistill.data.splits.patient_of`).
        seed: of the voxels that the silhouette is of, where there are more than 10,000.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    some = _MOST_FOR_SILHOUETTE if len(features) > _MOST_FOR_SILHOUETTE else None
    silhouette = float(silhouette_score(_components(features, seed), tumour, sample_size=some, random_state=seed))
    patients = [patient_of(str(case)) for case in cases]
    folds = min(_FOLDS, len(set(patients)))
    if folds < 2:
        return Separation(silhouette, None, folds)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))  # scaled by the patients it is fitted to
    areas = cross_val_score(probe, features, tumour, groups=patients, cv=GroupKFold(folds), scoring="roc_auc")
    return Separation(silhouette, float(areas.mean()), folds)


def embed(features: NDArray[Any], *, perplexity: float = 60, iterations: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """The t-SNE map (N, 2) of features (N, F).

    Args:
        features: of N voxels.
        perplexity: how many neighbours count, roughly.
        iterations: of the gradient descent.
        seed: of what is drawn.

    Raises:
        CaseError: not more voxels than the perplexity.
    """
    from sklearn.manifold import TSNE

    if len(features) <= perplexity:
        raise CaseError(f"{len(features)} voxels are too few for a perplexity of {perplexity:g}", remedy="give more cases")
    tsne = TSNE(2, perplexity=perplexity, max_iter=iterations, init="pca", random_state=seed)
    return np.asarray(tsne.fit_transform(_components(features, seed)), dtype=np.float64)


def _components(features: NDArray[Any], seed: int) -> NDArray[Any]:
    """Principal components of z-scored features, at most 50."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features)
    return np.asarray(PCA(min(_COMPONENTS, *scaled.shape), random_state=seed).fit_transform(scaled))
