"""A report on a model over images: one pass for their mean, one for the figures; memory for one batch."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchmetrics import Metric, MetricCollection

from transfervae.data import ImageDataset, open_dataset
from transfervae.errors import FeatureValueError, InvalidOptionError
from transfervae.evaluation.latents import measure_latents
from transfervae.evaluation.likelihood import negative_log_likelihood
from transfervae.evaluation.parts import Masks, PartErrors, radial_energy
from transfervae.evaluation.report import ImageFigures, Report
from transfervae.evaluation.verdicts import Evidence, judge
from transfervae.losses import rmse
from transfervae.metrics import AnyMetric, Baseline, Extractor, chroma_error, make_metrics, mean_image
from transfervae.metrics.features import FID, FeatureDistance
from transfervae.model import TransferVAE, evaluation_mode
from transfervae.ranks import add_up, count_processes, from_all, gather, on_all_ranks, own_places
from transfervae.shapes import Images, check_positive, check_seed, unit_images

REPORTED = ("rmse", "l1", "psnr", "ssim", "chroma", "kl", "rate", "information", "active_units")
"""Metrics of a report where none are named."""

JUDGED = ("rmse", "chroma", "active_units")
"""Metrics that verdicts are made from."""

DRAWN = 4
"""Every fourth image of a batch is also decoded from a draw."""

VERSIONS = ("transfervae", "torch", "torchmetrics", "timm")

Progress = Callable[[int, int], None]


@torch.no_grad()
def evaluate(
    vae: TransferVAE,
    data: Any,
    *,
    metrics: Sequence[AnyMetric] = REPORTED,
    masks: Callable[[int], Masks] | None = None,
    likelihood_draws: int | None = None,
    latents: bool = False,
    rows: Sequence[Mapping[str, float]] = (),
    monitor: str = "val/loss",
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Measure a model on images, and say how it was measured.

    Figures are those of reconstructions from the posterior's mode, in float32, not rounded to 8 bits; `draw_rmse` adds
    what a draw in place of the mode adds to the RMSE, measured on a quarter of the images. In a process group of
    torch.distributed, as `torchrun` makes one, each process measures its share of the images, and all get the report.

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
        likelihood_draws: Number of draws per image from which `negative_log_likelihood` estimates `nll`, in nats per
            image. The standard deviation of a pixel is the root of the images' mean squared error, which maximises
            the likelihood. None leaves `nll` out.
        latents: Also what latents tell, as `measure_latents` does; those of all images are kept in memory.
        rows: Figures by epoch, of the model's run, for verdicts on its length.
        monitor: The figure of `rows` that is minimised.
        batch_size: Images computed at once.
        seed: Of the draws.
        progress: Called with (images done, images in all) of this process; again from 0 for each further pass.

    Returns:
        The report.

    Raises:
        UnknownNameError: For a metric that does not exist.
        ImageFileError: If images cannot be read.
        FeatureValueError: If the model gives values that are not finite.
        ShapeError: If a mask has another size than the images.
        InvalidOptionError: If an option is out of range, a metric needs more images, or there is no likelihood.
        WeightsUnavailableError: If a metric's network cannot be fetched.
    """
    if not isinstance(vae, TransferVAE):
        raise InvalidOptionError(f"vae must be a TransferVAE, got {type(vae).__name__}; from_pretrained reads one.")
    check_positive(batch_size=batch_size, likelihood_draws=1 if likelihood_draws is None else likelihood_draws)
    check_seed(seed)
    if masks is not None and not callable(masks):
        raise InvalidOptionError("masks must be a function from an image's index to its masks by name.")
    if not all(isinstance(row, Mapping) for row in rows):
        raise InvalidOptionError("rows must be figures by name, one mapping an epoch.")
    collection = make_metrics(metrics).to(vae.device)
    images = open_dataset(data, vae.image_size)
    own = Subset(images, own_places(len(images)))
    judged = make_metrics([name for name in JUDGED if name not in metrics]).to(vae.device)
    mean = on_all_ranks(lambda: mean_image(_batches(own, batch_size)))
    mean = add_up(mean.double() * len(own)).div(len(images)).float()
    sums = _Sums(mean.to(vae.device), torch.Generator(vae.device).manual_seed(seed))
    measure = partial(_measure, vae, own, (collection, judged), sums, masks, batch_size, progress)
    is_gaussian = on_all_ranks(measure)
    sums.gather()
    figures = _computed(collection) | {"draw_rmse": sums.draw_rmse}
    if likelihood_draws is not None:
        sigma = _mean([error**2 for error in sums.errors]) ** 0.5
        nll = partial(_nll, vae, own, batch_size, sigma, likelihood_draws, seed, progress)
        figures["nll"] = _mean(gather(on_all_ranks(nll)))
    baseline = sums.baseline
    evidence = Evidence(
        figures=_computed(judged) | {name: figures[name] for name in JUDGED if name in metrics},
        baseline=baseline._asdict(),
        latent_size=math.prod(vae.latent_shape),
        is_gaussian=is_gaussian,
        has_pretrained_backbone=vae.backbone.provenance.weights is not None,
        rows=rows,
        monitor=monitor,
    )
    remarks = _remarks(list(collection.values()), len(images))
    if latents:
        found = measure_latents(vae, images, batch_size=batch_size, seed=seed, progress=progress)
        figures |= found.figures
        remarks += found.remarks
    protocol = _protocol(vae, images, b"".join(sums.digests), list(collection.values()), seed, batch_size)
    entries = _entries(images, sums.errors)
    return Report(
        figures=figures,
        baseline=baseline._asdict(),
        protocol=protocol | {"likelihood_draws": likelihood_draws},
        verdicts=[*judge(evidence), *remarks],
        images=entries,
        classes=_by_class(entries),
        parts=sums.parts.compute(),
        frequencies=(sums.energy[0] / sums.energy[1].clamp(min=1e-12)).tolist(),
        error_map=(sums.error_map / len(images)).tolist(),
    )


def _measure(
    vae: TransferVAE,
    images: Subset[Tensor],
    groups: Sequence[MetricCollection],
    sums: "_Sums",
    masks: Callable[[int], Masks] | None,
    batch_size: int,
    progress: Progress | None,
) -> bool:
    """Add the images of this process to metrics and sums; whether the posteriors are Gaussian."""
    with evaluation_mode(vae):
        for pixels in _pixels(images, batch_size):
            batch = unit_images(pixels.to(vae.device))
            output = vae(batch)
            draws = vae.decode(output.posterior.sample(generator=sums.generator)[::DRAWN])
            _check_finite(output.reconstruction, draws)
            for group in groups:
                group.update(output, batch)
            if masks is not None:
                places = images.indices[sums.count : sums.count + len(batch)]
                sums.parts.update([masks(place) for place in places], batch.cpu(), output.reconstruction.cpu())
            sums.add(pixels, batch, output.reconstruction, draws)
            if progress is not None:
                progress(sums.count, len(images))
    return "logvar" in output.posterior.moments()


class _Sums:
    """Per-image values and sums: of this process's images while they are added, of all images after `gather`.

    Values stay on the device until then, so that no batch waits for it.
    """

    def __init__(self, mean: Float[Tensor, "3 h w"], generator: torch.Generator) -> None:
        """Start empty."""
        height, width = mean.shape[1:]
        self.mean = mean
        self.generator = generator
        self.count = 0
        self.digests: list[bytes] = []
        self.parts = PartErrors(mean.cpu())
        self.error_map = mean.new_zeros(height, width, dtype=torch.float64)
        self.energy = mean.new_zeros(2, min(height, width) // 2 + 1, dtype=torch.float64)
        self._values: dict[str, list[Tensor]] = {"rmse": [], "excess": [], "mean rmse": [], "mean chroma": []}

    def add(self, pixels: Tensor, images: Images, reconstruction: Images, draws: Tensor) -> None:
        """Add one batch, with draws of every fourth image."""
        same, own = self.mean.expand_as(images), rmse(reconstruction, images)
        self.count += len(images)
        self.digests += [hashlib.sha256(image.numpy().tobytes()).digest() for image in pixels]
        self._values["rmse"].append(own)
        self._values["excess"].append(rmse(draws, images[::DRAWN]) - own[::DRAWN])
        self._values["mean rmse"].append(rmse(same, images))
        self._values["mean chroma"].append(chroma_error(same, images))
        difference = reconstruction - images
        self.error_map += difference.abs().mean(dim=1).double().sum(dim=0)
        self.energy[0] += radial_energy(difference)
        self.energy[1] += radial_energy(images - self.mean)

    def gather(self) -> None:
        """Take in what other processes have."""
        own = {name: torch.cat(values).tolist() for name, values in self._values.items()}
        excess = [value for part in from_all(own["excess"]) for value in part]
        self.errors: list[float] = gather(own["rmse"])
        self.draw_rmse = _mean(self.errors) + _mean(excess)
        self.baseline = Baseline(_mean(gather(own["mean rmse"])), _mean(gather(own["mean chroma"])))
        self.digests = gather(self.digests)
        self.parts.gather()
        self.error_map, self.energy = add_up(self.error_map), add_up(self.energy)


def _nll(
    vae: TransferVAE,
    images: Subset[Tensor],
    batch_size: int,
    sigma: float,
    draws: int,
    seed: int,
    progress: Progress | None,
) -> list[float]:
    """Of each image of this process, in nats."""
    values: list[float] = []
    for batch in _batches(images, batch_size):
        nats = negative_log_likelihood(
            vae, batch.to(vae.device), sigma=sigma, draws=draws, seed=(seed + len(values)) % 2**63
        )
        values += nats.tolist()
        if progress is not None:
            progress(len(values), len(images))
    return values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _pixels(images: Subset[Tensor], batch_size: int) -> Iterator[Tensor]:
    return iter(DataLoader(images, batch_size=batch_size))


def _batches(images: Subset[Tensor], batch_size: int) -> Iterator[Images]:
    return (unit_images(pixels) for pixels in _pixels(images, batch_size))


def _check_finite(*results: Tensor) -> None:
    if not all(values.isfinite().all() for values in results):
        raise FeatureValueError("The model gives values that are not finite: its weights are bad.")


def _computed(metrics: MetricCollection) -> dict[str, float]:
    figures = {name: float(value) for name, value in metrics.compute().items()}
    for name, value in figures.items():
        if math.isnan(value):
            raise FeatureValueError(f"The figure {name} is NaN: the model's weights are bad.")
    return figures


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
    widths = [metric.num_features for metric in metrics if isinstance(metric, FeatureDistance | FID)]
    return [
        f"The Frechet distance is from {count} images, fewer than its {width} features: it is too high, and only"
        " comparable at the same number of images. The kernel distance (kd, kid) is not biased."
        for width in widths
        if count < width
    ]


def _protocol(
    vae: TransferVAE, images: ImageDataset, digests: bytes, metrics: Sequence[Metric], seed: int, batch_size: int
) -> dict[str, Any]:
    extractors = {
        part.label: part.fingerprint for metric in metrics for part in metric.modules() if isinstance(part, Extractor)
    }
    return {
        "image_size": list(vae.image_size),
        "resize": "shorter side, Pillow's bicubic, then the centre; data sets' tensors as they are",
        "rounding": "images 8 bits, reconstructions not rounded but for FID and KID",
        "images": len(images),
        "images_sha256": hashlib.sha256(digests).hexdigest(),
        "latent": "mode",
        "draws": f"of every image at a multiple of {DRAWN} in a batch",
        "seed": seed,
        "extractors": extractors,
        "backbone": vae.backbone.config,
        "device": vae.device.type,
        "batch_size": batch_size,
        "processes": count_processes(),
        **{name: _version(name) for name in VERSIONS},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
