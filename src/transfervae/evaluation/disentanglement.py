"""How far single latent numbers stand for single factors that images were drawn from."""

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from transfervae.errors import InvalidOptionError, MissingExtraError

BINS = 20
HELD_OUT = 0.2
TINY = 1e-11
FEWEST = 10

Array = NDArray[np.float64]


class DisentanglementFigures(NamedTuple):
    """Scores of latents against known factors; 1 is best.

    Attributes:
        disentanglement: How far each latent number stands for one factor alone, in [0, 1].
        completeness: How far each factor is in one latent number alone, in [0, 1].
        informativeness: How well factors are told from latents that were not learned from: the share of variance
            explained (at most 1) for continuous factors, accuracy for whole ones; mean over factors.
        mig: Mutual information gap: by how much the number that tells most of a factor tells more than the next one, in
            shares of the factor's entropy, mean over factors.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    mig: float


def disentanglement(latents: Float[Tensor, "n d"], factors: Tensor) -> DisentanglementFigures:
    """Score latents against the factors that their images were drawn from: DCI and MIG.

    DCI (Eastwood & Williams 2018) takes the importances of latent numbers in gradient-boosted trees that tell one
    factor each: regression trees for factors in floating point, classification trees for whole numbers; a fifth of the
    images is held out. MIG (Chen et al. 2018) takes histograms of 20 bins. Factors that are the same for all images are
    left out.

    Args:
        latents: `[n, d]`, with 2 numbers or more.
        factors: `[n, k]`, floating point for continuous factors, or whole numbers for classes.

    Raises:
        InvalidOptionError: If there are fewer than 10 images, other numbers of both, or no factor that varies.
        MissingExtraError: If scikit-learn is not installed.
    """
    if latents.ndim != 2 or factors.ndim != 2 or len(latents) != len(factors) or latents.shape[1] < 2:
        raise InvalidOptionError(
            f"Scores need latents [n, d] with d at least 2 and factors [n, k], got {list(latents.shape)} and"
            f" {list(factors.shape)}."
        )
    if not (latents.isfinite().all() and factors.isfinite().all()):
        raise InvalidOptionError("Latents and factors must be finite.")
    varies = (factors != factors[:1]).any(dim=0)
    if len(latents) < FEWEST or not varies.any():
        raise InvalidOptionError(f"Scores need at least {FEWEST} images, and a factor that varies.")
    points = latents.detach().cpu().double().numpy()
    varying = factors[:, varies].detach().cpu()
    known = (varying.double() if varying.is_floating_point() else varying).numpy()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0)).numpy()
    count = max(1, round(HELD_OUT * len(points)))
    importances, informativeness = _importances(points, known, order[count:], order[:count])
    return DisentanglementFigures(
        _concentration(importances.T), _concentration(importances), informativeness, _information_gap(points, known)
    )


def _importances(points: Array, factors: Any, learned: Any, held_out: Any) -> tuple[Array, float]:
    """Importance of each latent number for each factor, `[d, k]`, and the mean score on images held out."""
    ensemble = _sklearn("ensemble")
    is_continuous = np.issubdtype(factors.dtype, np.floating)
    kind = ensemble.GradientBoostingRegressor if is_continuous else ensemble.GradientBoostingClassifier
    columns, scores = [], []
    for factor in factors.T:
        trees = kind(random_state=0).fit(points[learned], factor[learned])
        columns.append(np.abs(trees.feature_importances_))
        scores.append(trees.score(points[held_out], factor[held_out]))
    return np.stack(columns, axis=1), float(np.mean(scores))


def _concentration(importances: Array) -> float:
    """One minus the entropy of each column over the rows, in units of its largest value; weighted by the columns."""
    shares = (importances + TINY) / (importances + TINY).sum(axis=0)
    entropy = -(shares * np.log(shares)).sum(axis=0) / np.log(len(importances)) if len(importances) > 1 else 0.0
    weights = importances.sum(axis=0)
    weights = weights / weights.sum() if weights.sum() else np.full(len(weights), 1 / len(weights))
    return float(np.sum(weights * (1 - entropy)))


def _information_gap(points: Array, factors: Any) -> float:
    score = _sklearn("metrics").mutual_info_score
    binned = [_bins(column) for column in points.T]
    whole = [_bins(column) if np.issubdtype(factors.dtype, np.floating) else column for column in factors.T]
    gaps = []
    for factor in whole:
        told = sorted((score(factor, column) for column in binned), reverse=True)
        gaps.append((told[0] - told[1]) / score(factor, factor))
    return float(np.mean(gaps))


def _bins(values: Array) -> NDArray[np.int64]:
    edges = np.histogram_bin_edges(values, BINS)
    return np.digitize(values, edges[:-1])


def _sklearn(name: str) -> Any:
    try:
        return import_module(f"sklearn.{name}")
    except ImportError:
        raise MissingExtraError("A score against factors", "evaluate") from None
