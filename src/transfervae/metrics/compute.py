"""The figures of a model over held-out images."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from transfervae.errors import InvalidOptionError
from transfervae.losses import rmse
from transfervae.metrics.color import ChromaError, chroma_error
from transfervae.metrics.features import FID, KID, FeatureDistance, KernelDistance
from transfervae.metrics.latents import ActiveUnits, Information, MeanKL, Rate
from transfervae.metrics.perceptual import LPIPS
from transfervae.metrics.reconstruction import L1, MSSSIM, PSNR, RMSE, SSIM
from transfervae.model import TransferVAE
from transfervae.options import PartTable, Spec

METRICS = PartTable(
    "metric",
    {
        "rmse": RMSE,
        "psnr": PSNR,
        "ssim": SSIM,
        "kl": MeanKL,
        "active_units": ActiveUnits,
        "l1": L1,
        "chroma": ChromaError,
        "rate": Rate,
        "information": Information,
        "fd": FeatureDistance,
        "kd": KernelDistance,
        "ms_ssim": MSSSIM,
        "lpips": LPIPS,
        "fid": FID,
        "kid": KID,
    },
)
"""Metrics by name: torchmetrics whose `update` takes the model's output and the images."""

DEFAULT_METRICS = ("rmse", "psnr", "ssim", "kl", "active_units")

AnyMetric: TypeAlias = str | Spec | Mapping[str, Any] | Metric


def make_metrics(metrics: Sequence[AnyMetric] | Mapping[str, Metric] = DEFAULT_METRICS) -> MetricCollection:
    """Gather metrics that are updated together, with (`VAEOutput`, images).

    Args:
        metrics: Names or specs from `METRICS`, or metrics of your own, which are named by their class; or metrics of
            your own by name.

    Raises:
        UnknownNameError: For a name that is not in `METRICS`.
        InvalidOptionError: For a metric that is given twice, or is none.
    """
    if not isinstance(metrics, Sequence | Mapping) or isinstance(metrics, str):
        raise InvalidOptionError(f"metrics must be a list of metrics, got {metrics!r}; write [{metrics!r}].")
    made: dict[str, Metric] = {}
    entries = metrics.items() if isinstance(metrics, Mapping) else [_named(metric) for metric in metrics]
    for name, metric in entries:
        if not isinstance(metric, Metric):
            raise InvalidOptionError(f"{name} must be a torchmetrics.Metric, got {type(metric).__name__}.")
        if name == "loss" or not re.fullmatch(r"\w+", name):
            raise InvalidOptionError(f"A metric cannot be named {name!r}: letters, digits and _, and not 'loss'.")
        if name in made:
            raise InvalidOptionError(f"The metric {name!r} is given twice.")
        made[name] = metric
    # A group of metrics would share one state, and updates here differ from torchmetrics' own.
    collection = MetricCollection([], compute_groups=False)
    for name, metric in made.items():  # one by one, since several at once would be sorted by name
        collection.add_metrics({name: metric})
    return collection


@torch.no_grad()
def compute_metrics(
    vae: TransferVAE, batches: Iterable[Tensor], *, metrics: Sequence[AnyMetric] | MetricCollection = DEFAULT_METRICS
) -> dict[str, float]:
    """The figures of a model over images in this process, from its posteriors' modes, without autocast.

    Args:
        vae: The model; it is put into evaluation mode.
        batches: Images, `[b, 3, h, w]` in [0, 1].
        metrics: Names, or metrics of your own, as in `make_metrics`.

    Returns:
        One value per metric.

    Raises:
        UnknownNameError: For a name that is not in `METRICS`.
    """
    vae.eval()
    collection = metrics if isinstance(metrics, MetricCollection) else make_metrics(metrics)
    collection = collection.clone().to(vae.device)
    collection.reset()
    for metric in collection.values():
        metric.distributed_available_fn = _alone  # other processes are not asked for their sums
    for images in batches:
        on_device = images.to(vae.device)
        collection.update(vae(on_device), on_device)
    return {name: float(value) for name, value in collection.compute().items()}


def mean_image(batches: Iterable[Tensor]) -> Float[Tensor, "3 h w"]:
    """The mean of images.

    Args:
        batches: Batches of images, `[b, 3, h, w]` in [0, 1].
    """
    total, count = torch.zeros(()), 0
    for images in batches:
        total = total + images.double().sum(dim=0)
        count += len(images)
    return (total / count).float()


class Baseline(NamedTuple):
    """Errors of predicting one image for all: what a model has to beat.

    Attributes:
        rmse: Mean over images of each one's RMSE, in [0, 1].
        chroma: Mean over images of each one's error of colour, as `ChromaError`.
    """

    rmse: float
    chroma: float


def baseline_of(mean: Float[Tensor, "3 h w"], batches: Iterable[Tensor]) -> Baseline:
    """Errors of predicting a mean image for every image.

    Args:
        mean: From `mean_image`, of training images.
        batches: Batches of images, `[b, 3, h, w]` in [0, 1].
    """
    errors: list[tuple[Tensor, Tensor]] = []
    for images in batches:
        same = mean.expand_as(images)
        errors.append((rmse(same, images), chroma_error(same, images)))
    return Baseline(*(torch.cat(values).mean().item() for values in zip(*errors, strict=True)))


def _alone() -> bool:
    return False


def _named(metric: AnyMetric) -> tuple[str, Metric]:
    if isinstance(metric, Metric):
        known = METRICS.spec_of(metric)
        return (type(metric).__name__ if known is None else known.name), metric
    spec = METRICS.check(metric)
    built: Metric = METRICS.build(spec)
    return spec.name, built
