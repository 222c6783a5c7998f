"""The figures of a model over held-out images."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from transfervae.errors import InvalidOptionError
from transfervae.losses import rmse
from transfervae.metrics.latents import ActiveUnits, MeanKL
from transfervae.metrics.reconstruction import PSNR, RMSE, SSIM
from transfervae.model import TransferVAE
from transfervae.options import PartTable, Spec

METRICS = PartTable("metric", {"rmse": RMSE, "psnr": PSNR, "ssim": SSIM, "kl": MeanKL, "active_units": ActiveUnits})
"""Metrics by name: torchmetrics whose `update` takes the model's output and the images."""

DEFAULT_METRICS = tuple(METRICS)

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
    if isinstance(metrics, str | Metric):
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
def evaluate(
    vae: TransferVAE, batches: Iterable[Tensor], *, metrics: Sequence[AnyMetric] | MetricCollection = DEFAULT_METRICS
) -> dict[str, float]:
    """The figures of a model over images in this process, from its posteriors' modes, without autocast.

    Args:
        vae: The model; it is put into evaluation mode.
        batches: Images, `[b, 3, h, w]` in [0, 1].
        metrics: Names, or metrics of your own, as in `make_metrics`.

    Returns:
        One value a metric.

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


def mean_image_rmse(training: Iterable[Tensor], val: Iterable[Tensor]) -> float:
    """RMSE of predicting the mean training image for every held-out image: what a model has to beat.

    Args:
        training: Batches of images, `[b, 3, h, w]` in [0, 1].
        val: Batches of images, `[b, 3, h, w]` in [0, 1].

    Returns:
        Mean over the held-out images, in [0, 1].
    """
    total, count = torch.zeros(()), 0
    for images in training:
        total = total + images.double().sum(dim=0)
        count += len(images)
    mean = (total / count).float()
    errors = torch.cat([rmse(mean.expand_as(images), images) for images in val])
    return errors.mean().item()


def _alone() -> bool:
    return False


def _named(metric: AnyMetric) -> tuple[str, Metric]:
    if isinstance(metric, Metric):
        known = METRICS.spec_of(metric)
        return (type(metric).__name__ if known is None else known.name), metric
    spec = METRICS.check(metric)
    built: Metric = METRICS.build(spec)
    return spec.name, built
