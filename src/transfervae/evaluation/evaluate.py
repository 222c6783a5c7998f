"""A report on a model over images: one pass for their mean, one for the figures; memory for one batch."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric

from transfervae.data import ImageDataset, open_dataset
from transfervae.errors import FeatureValueError, InvalidOptionError
from transfervae.evaluation.parts import Masks, PartErrors, radial_energy
from transfervae.evaluation.report import ImageFigures, Report
from transfervae.evaluation.verdicts import Evidence, judge
from transfervae.losses import rmse
from transfervae.metrics import AnyMetric, Baseline, baseline_of, make_metrics, mean_image
from transfervae.metrics.features import FeatureDistance, PooledFeatures
from transfervae.model import TransferVAE, evaluation_mode
from transfervae.shapes import Images, check_positive, check_seed, unit_images

REPORTED = ("rmse", "l1", "psnr", "ssim", "chroma", "kl", "rate", "information", "active_units")
"""Metrics of a report where none are named."""

SMALLEST_SSIM = 6
"""Shortest side of images that structural similarity is computed for, in pixels."""

VERSIONS = ("transfervae", "torch", "torchmetrics", "timm")

Progress = Callable[[int, int], None]


@torch.no_grad()
def evaluate(
    vae: TransferVAE,
    data: Any,
    *,
    metrics: Sequence[AnyMetric] = REPORTED,
    masks: Callable[[int], Masks] | None = None,
    rows: Sequence[Mapping[str, float]] = (),
    monitor: str = "val/loss",
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Measure a model on images, and say how it was measured.

    Figures are those of reconstructions from the posterior's mode, in float32, not rounded to 8 bits; `draw_rmse` is
    that of one draw per image.

    Example:
        >>> import transfervae as tv
        >>> vae = tv.build_vae(tv.Spec("timm:test_resnet", weights=None), image_size=32, latent_dim=8)
        >>> report = tv.evaluate(vae, tv.ToyFaces(8, 32), metrics=["rmse", "psnr"])
        >>> sorted(report.figures)
        ['draw_rmse', 'psnr', 'rmse']

    Args:
        vae: The model; it is left in the mode that it was in.
        data: Images in any form that `open_dataset` takes.
        metrics: Names or specs from `METRICS`, or metrics of your own.
        masks: Gives the parts of the image at an index: boolean `[h, w]` by name. Errors are then told by part.
        rows: Figures by epoch, of the model's run, for verdicts on its length.
        monitor: The figure of `rows` that is minimised.
        batch_size: Images computed at once.
        seed: Of the draws.
        progress: Called with (images done, images in all).

    Returns:
        The report.

    Raises:
        UnknownNameError: For a metric that does not exist.
        ImageFileError: If images cannot be read.
        FeatureValueError: If the model gives values that are not finite.
        ShapeError: If a mask has another size than the images.
        InvalidOptionError: If an option is out of range, or a metric needs more images.
    """
    if not isinstance(vae, TransferVAE):
        raise InvalidOptionError(f"vae must be a TransferVAE, got {type(vae).__name__}; from_pretrained reads one.")
    check_positive(batch_size=batch_size)
    check_seed(seed)
    if masks is not None and not callable(masks):
        raise InvalidOptionError("masks must be a function from an image's index to its masks by name.")
    wanted = [metric for metric in metrics if metric != "ssim" or min(vae.image_size) >= SMALLEST_SSIM]
    collection = make_metrics(wanted).to(vae.device)
    images = open_dataset(data, vae.image_size)
    judged = make_metrics(["rmse", "chroma", "active_units"]).to(vae.device)
    mean = mean_image(_batches(images, batch_size))
    errors = PartErrors(mean)
    generator = torch.Generator(vae.device).manual_seed(seed)
    digest = hashlib.sha256()
    baselines: list[Baseline] = []
    own_errors: list[float] = []
    draw_errors: list[float] = []
    error_map = torch.zeros(vae.image_size, dtype=torch.float64)
    energy = torch.zeros(2, min(vae.image_size) // 2 + 1, dtype=torch.float64)
    with evaluation_mode(vae):
        for pixels in _pixels(images, batch_size):
            digest.update(pixels.numpy().tobytes())
            batch = unit_images(pixels.to(vae.device))
            output = vae(batch)
            _check_finite(output.reconstruction)
            for group in (collection, judged):
                group.update(output, batch)
            first = len(own_errors)
            own_errors += rmse(output.reconstruction, batch).tolist()
            draw = vae.decode(output.posterior.sample(generator=generator))
            _check_finite(draw)
            draw_errors += rmse(draw, batch).tolist()
            difference = output.reconstruction - batch
            error_map += difference.abs().double().mean(dim=1).sum(dim=0).cpu()
            energy[0] += radial_energy(difference).cpu()
            energy[1] += radial_energy(batch - mean.to(batch)).cpu()
            baselines += [baseline_of(mean.to(batch), [batch])] * len(batch)
            if masks is not None:
                for place, pair in enumerate(zip(batch.cpu(), output.reconstruction.cpu(), strict=True), start=first):
                    errors.update(masks(place), *pair)
            if progress is not None:
                progress(len(own_errors), len(images))
    figures = {name: float(value) for name, value in collection.compute().items()}
    figures["draw_rmse"] = sum(draw_errors) / len(draw_errors)
    unknown = [name for name, value in figures.items() if math.isnan(value)]
    if unknown:
        raise FeatureValueError(f"The figure {unknown[0]} is NaN: the model's weights are bad.")
    baseline = Baseline(*(sum(values) / len(values) for values in zip(*baselines, strict=True)))
    evidence = Evidence(
        figures={name: float(value) for name, value in judged.compute().items()},
        baseline=baseline._asdict(),
        latent_size=math.prod(vae.latent_shape),
        is_gaussian="logvar" in output.posterior.moments(),
        has_pretrained_backbone=vae.backbone.provenance.weights is not None,
        rows=rows,
        monitor=monitor,
    )
    entries = _entries(images, own_errors)
    return Report(
        figures=figures,
        baseline=baseline._asdict(),
        protocol=_protocol(vae, images, digest.hexdigest(), list(collection.values()), seed),
        verdicts=[*judge(evidence), *_remarks(list(collection.values()), len(images))],
        images=entries,
        classes=_by_class(entries),
        parts=errors.compute(),
        frequencies=(energy[0] / energy[1].clamp(min=1e-12)).tolist(),
        error_map=(error_map / len(own_errors)).tolist(),
    )


def _pixels(images: ImageDataset, batch_size: int) -> Iterator[Tensor]:
    return iter(DataLoader(images, batch_size=batch_size))


def _batches(images: ImageDataset, batch_size: int) -> Iterator[Images]:
    return (unit_images(pixels) for pixels in _pixels(images, batch_size))


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise FeatureValueError("The model gives values that are not finite: its weights are bad.")


def _entries(images: ImageDataset, errors: Sequence[float]) -> list[ImageFigures]:
    labels, classes = images.labels, images.classes
    if labels is not None and classes is not None and max(labels) >= len(classes):
        raise InvalidOptionError(f"A label is {max(labels)}, and there are {len(classes)} classes.")
    named = [None] * len(errors) if labels is None or classes is None else [classes[label] for label in labels]
    return [
        ImageFigures(images.name_of(index), error, label)
        for index, (error, label) in enumerate(zip(errors, named, strict=True))
    ]


def _by_class(entries: Sequence[ImageFigures]) -> dict[str, float]:
    by_class: dict[str, list[float]] = {}
    for entry in entries:
        if entry.label is not None:
            by_class.setdefault(entry.label, []).append(entry.rmse)
    return {label: sum(errors) / len(errors) for label, errors in sorted(by_class.items())}


def _remarks(metrics: Sequence[Metric], count: int) -> list[str]:
    """Sentences that qualify single figures."""
    widths = [
        part.num_features for metric in metrics if isinstance(metric, FeatureDistance) for part in _pooled(metric)
    ]
    return [
        f"The Frechet distance is from {count} images, fewer than its {width} features: it is too high, and only"
        " comparable at the same number of images. The kernel distance (kd) is not biased."
        for width in widths
        if count < width
    ]


def _pooled(metric: Metric) -> list[PooledFeatures]:
    return [part for part in metric.modules() if isinstance(part, PooledFeatures)]


def _protocol(
    vae: TransferVAE, images: ImageDataset, digest: str, metrics: Sequence[Metric], seed: int
) -> dict[str, Any]:
    extractors = {}
    for metric in metrics:
        for part in _pooled(metric):
            source = part.backbone.provenance
            extractors[f"{source.name} at {source.place}"] = part.backbone.fingerprint
    return {
        "image_size": list(vae.image_size),
        "resize": "shorter side, Pillow's bicubic, then the centre; data sets' tensors as they are",
        "rounding": "images 8 bits, reconstructions not rounded",
        "images": len(images),
        "images_sha256": digest,
        "latent": "mode",
        "draws": "one per image",
        "seed": seed,
        "extractors": extractors,
        "backbone": vae.backbone.config,
        "device": vae.device.type,
        **{name: _version(name) for name in VERSIONS},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
