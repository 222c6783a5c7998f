"""Figures of latents: class probes, mutual information with the images, and scores against known factors."""

import math
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Subset

from transfervae.data import ImageDataset, SelectedImages, ToyFaces
from transfervae.errors import InvalidOptionError
from transfervae.evaluation.disentanglement import disentanglement
from transfervae.evaluation.probes import probe
from transfervae.model import TransferVAE, evaluation_mode
from transfervae.posteriors import DiagonalGaussian
from transfervae.ranks import gather, on_all_ranks, own_places
from transfervae.shapes import check_seed, unit_images

LONGEST = 4096
"""Numbers of a vector that probes get; larger maps are averaged over positions until they have no more."""

LONGEST_FOR_FACTORS = 512
"""Numbers of a latent up to which its factors are looked for: trees look at each of them."""

CHUNK = 256


class LatentFigures(NamedTuple):
    """What the latents of images tell.

    Attributes:
        figures: By name: `mutual_information` in nats, at most the logarithm of the number of images (Gaussian heads);
            with classes `nearest_class`, `linear_probe` and `chance`, and `features_nearest_class` and
            `features_linear_probe`, the same of the backbone's features; with known factors `dci_disentanglement`,
            `dci_completeness`, `dci_informativeness` and `mig`.
        remarks: Sentences on figures that are missing.
    """

    figures: dict[str, float]
    remarks: list[str]


@torch.no_grad()
def measure_latents(
    vae: TransferVAE,
    images: ImageDataset,
    *,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LatentFigures:
    """Measure what latents tell; those of all images are kept in memory.

    Args:
        vae: The model.
        images: uint8 images of the model's size; their labels are the classes.
        batch_size: Images computed at once.
        seed: Of the draws.
        progress: Called with (images done, images in all).

    Raises:
        MissingExtraError: If scikit-learn is not installed, and there are classes or factors.
    """
    check_seed(seed)
    own = Subset(images, own_places(len(images)))
    rows = gather(on_all_ranks(partial(_encode, vae, own, batch_size, progress)))
    latents, features = (torch.stack(values) for values in ([row[0] for row in rows], [row[2] for row in rows]))
    spreads = [row[1] for row in rows if row[1] is not None]
    figures: dict[str, float] = {}
    remarks: list[str] = []
    if spreads:
        figures["mutual_information"] = mutual_information(DiagonalGaussian(latents, torch.stack(spreads)), seed=seed)
    measures = {
        "Classes were not probed": lambda: _probe_figures(as_vectors(latents), features, images),
        "Factors were not looked for": lambda: _factor_figures(latents, images),
    }
    for missing, measure in measures.items():
        try:
            figures |= measure()
        except InvalidOptionError as error:
            remarks.append(f"{missing}: {error}")
    return LatentFigures(figures, remarks)


def _encode(
    vae: TransferVAE, images: Subset[Tensor], batch_size: int, progress: Callable[[int, int], None] | None
) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Mean, logarithm of the variance if there is one, and features of each image."""
    rows: list[tuple[Tensor, Tensor | None, Tensor]] = []
    with evaluation_mode(vae):
        for pixels in DataLoader(images, batch_size=batch_size):
            batch = unit_images(pixels.to(vae.device))
            features = vae.backbone(batch)
            posterior = vae.encode_features(features)
            is_gaussian = isinstance(posterior, DiagonalGaussian)
            logvars = list(posterior.logvar.cpu()) if is_gaussian else [None] * len(batch)
            rows += zip(posterior.mean.cpu(), logvars, as_vectors(features).cpu(), strict=True)
            if progress is not None:
                progress(len(rows), len(images))
    return rows


def mutual_information(posterior: DiagonalGaussian, *, seed: int = 0) -> float:
    """Estimate the mutual information of images and their latents, in nats, with one draw per image.

    The mean of log q(z|x) - log q(z) over draws z from q(z|x), where q(z) is the mean of the posteriors of all images
    (Hoffman & Johnson 2016). It is at most the logarithm of the number of images, whatever the latents tell.

    Args:
        posterior: Of all images.
        seed: Of the draws.
    """
    means, logvars = (values.double().flatten(1) for values in (posterior.mean, posterior.logvar))
    generator = torch.Generator(means.device).manual_seed(seed)
    noise = torch.randn(means.shape, generator=generator, dtype=means.dtype, device=means.device)
    draws = means + (0.5 * logvars).exp() * noise
    precisions = (-logvars).exp()
    constants = (means.square() * precisions + logvars).sum(dim=1)
    differences = []
    for first in range(0, len(means), CHUNK):
        part = slice(first, first + CHUNK)
        # squares of (z_i - mean_j) / std_j, summed over the latent's numbers, for all pairs by matrix products
        squares = draws[part].square() @ precisions.T - 2 * draws[part] @ (means * precisions).T + constants
        own = (noise[part].square() + logvars[part]).sum(dim=1)
        log_mean = torch.logsumexp(-0.5 * squares, dim=1) - math.log(len(means))
        differences.append(-0.5 * own - log_mean)
    return torch.cat(differences).mean().item()


def as_vectors(values: Tensor) -> Float[Tensor, "n d"]:
    """Vectors `[n, d]` of at most 4,096 numbers: maps `[n, c, h, w]` are averaged over positions until they fit."""
    if values.ndim == 4 and values[0].numel() > LONGEST:
        channels, height, width = values.shape[1:]
        scale = math.sqrt(LONGEST / (channels * height * width))
        values = adaptive_avg_pool2d(values, (max(1, int(height * scale)), max(1, int(width * scale))))
    return values.flatten(1)


def known_factors(images: ImageDataset) -> Float[Tensor, "n k"] | None:
    """What images were drawn from, one row an image; None if that is not known."""
    source = images.source if isinstance(images, SelectedImages) else images
    if not isinstance(source, ToyFaces):
        return None
    places = images.indices if isinstance(images, SelectedImages) else range(len(images))
    return torch.tensor([astuple(source.factors(place)) for place in places])


def _factor_figures(latents: Tensor, images: ImageDataset) -> dict[str, float]:
    factors = known_factors(images)
    if factors is None:
        return {}
    if latents[0].numel() > LONGEST_FOR_FACTORS:
        raise InvalidOptionError(f"the latent has more than {LONGEST_FOR_FACTORS} numbers.")
    found = disentanglement(latents.flatten(1), factors)._asdict()
    return {name if name == "mig" else f"dci_{name}": value for name, value in found.items()}


def _probe_figures(latents: Tensor, features: Tensor, images: ImageDataset) -> dict[str, float]:
    if images.labels is None:
        raise InvalidOptionError("the images have none.")
    own, raw = (probe(vectors, list(images.labels)) for vectors in (latents, features))
    return {
        "nearest_class": own.nearest,
        "linear_probe": own.linear,
        "features_nearest_class": raw.nearest,
        "features_linear_probe": raw.linear,
        "chance": own.chance,
    }
