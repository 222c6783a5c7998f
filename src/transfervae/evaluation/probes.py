"""Probes of latents: class accuracy, nearest neighbours, and outliers."""

import warnings
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from transfervae.errors import InvalidOptionError, MissingExtraError
from transfervae.model import TransferVAE
from transfervae.posteriors import Posterior
from transfervae.priors import Prior
from transfervae.shapes import PerItem, check_positive

FOLDS = 5
MOST_STEPS = 2000

Points = Float[Tensor, "n d"]


class ProbeFigures(NamedTuple):
    """How well classes are told from vectors.

    Attributes:
        nearest: Share of images whose nearest other image is of the same class.
        linear: Accuracy of logistic regression on standardised vectors, cross-validated.
        chance: Share of the largest class: what a guess would reach.
        images: Images of classes with two or more of them; others are left out.
    """

    nearest: float
    linear: float
    chance: float
    images: int


def probe(points: Tensor, labels: Sequence[int]) -> ProbeFigures:
    """Measure how well classes are told from vectors, such as latents or a backbone's features.

    The linear probe is scikit-learn's logistic regression on standardised vectors, with stratified folds: five, or as
    many as the smallest class has images. The nearest neighbour is by Euclidean distance among all other images.

    Args:
        points: `[n, ...]`, flattened to vectors.
        labels: The class of each.

    Raises:
        InvalidOptionError: If there are fewer than two classes with two images each, or other numbers of both.
        MissingExtraError: If scikit-learn is not installed.
    """
    if len(labels) != len(points):
        raise InvalidOptionError(f"There are {len(points)} vectors and {len(labels)} labels.")
    _check_finite(points)
    counts = Counter(labels)
    kept = [place for place, label in enumerate(labels) if counts[label] >= 2]
    classes = torch.tensor([labels[place] for place in kept])
    if len(set(classes.tolist())) < 2:
        raise InvalidOptionError("A probe needs at least two classes with two images each.")
    vectors = points.detach().cpu().flatten(1).double()[kept]
    distances = torch.cdist(vectors, vectors).fill_diagonal_(float("inf"))
    nearest = (classes[distances.argmin(dim=1)] == classes).double().mean().item()
    sizes = Counter(classes.tolist())
    linear = _linear_accuracy(vectors, classes, folds=min(FOLDS, *sizes.values()))
    return ProbeFigures(nearest, linear, max(sizes.values()) / len(kept), len(kept))


def nearest_images(points: Tensor, query: Tensor, *, count: int = 8) -> Int64[Tensor, "q k"]:
    """Places of the vectors that are nearest to each query, nearest first.

    Args:
        points: `[n, ...]`.
        query: `[q, ...]`.
        count: How many; at most n are given.

    Raises:
        InvalidOptionError: If `count` is below 1, lengths differ, or values are not finite.
    """
    check_positive(count=count)
    if points[0].numel() != query[0].numel():
        raise InvalidOptionError(f"Vectors of {points[0].numel()} numbers and queries of {query[0].numel()} differ.")
    _check_finite(points, query)
    distances = torch.cdist(query.flatten(1).double(), points.flatten(1).double())
    places: Tensor = distances.topk(min(count, len(points)), largest=False).indices
    return places


def outliers(vae: TransferVAE, posterior: Posterior, *, count: int = 8) -> tuple[Int64[Tensor, " k"], PerItem]:
    """The images whose latents are the least likely under the model's prior.

    Args:
        vae: The model.
        posterior: Of all images, as `encode_images` gives it.
        count: How many; at most all are given.

    Returns:
        Their places, the least likely first, and their log-densities, in nats.

    Raises:
        InvalidOptionError: If `count` is below 1, or the prior is in scaled space and the model has no scaling.
    """
    check_positive(count=count)
    prior = cast(Prior, vae.prior)
    latents = posterior.mode().cpu()
    if prior.is_scaled:
        if vae.scaling is None:
            raise InvalidOptionError("The prior is in scaled space, and the model has no scaling; call fit_scaling.")
        latents = posterior.normalised(vae.scaling.mean.cpu(), vae.scaling.std.cpu()).mode()
    likely = prior.log_prob(latents)
    values, places = likely.topk(min(count, len(likely)), largest=False)
    return places, values


def _check_finite(*values: Tensor) -> None:
    if not all(part.isfinite().all() for part in values):
        raise InvalidOptionError("Vectors must be finite.")


def _linear_accuracy(vectors: Points, classes: Tensor, *, folds: int) -> float:
    try:
        linear = import_module("sklearn.linear_model")
        selection = import_module("sklearn.model_selection")
        pipeline = import_module("sklearn.pipeline")
        preprocessing = import_module("sklearn.preprocessing")
    except ImportError:
        raise MissingExtraError("A linear probe", "evaluate") from None
    model: Any = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear.LogisticRegression(max_iter=MOST_STEPS, random_state=0)
    )
    split = selection.StratifiedKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that did not converge, which cost accuracy alone
        scores = selection.cross_val_score(model, vectors.numpy(), classes.numpy(), cv=split)
    return float(scores.mean())
