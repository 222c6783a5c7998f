"""Errors by part of the image, such as eyes and hair, from masks."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transfervae.data import ImageDataset, SelectedImages, ToyFaces
from transfervae.errors import InvalidOptionError, ShapeError
from transfervae.evaluation.report import PartFigures
from transfervae.ranks import gather
from transfervae.shapes import Images

DRAWS = 1000
"""Bootstrap samples of the images."""

INTERVAL = (2.5, 97.5)

Masks = Mapping[str, Bool[Tensor, "h w"]]


def face_masks(images: ImageDataset) -> Callable[[int], Masks]:
    """The masks of drawn faces, by their places in a data set.

    Args:
        images: `ToyFaces`, or some of them.

    Raises:
        InvalidOptionError: If the images are no drawn faces, whose parts are known.
    """
    source = images.source if isinstance(images, SelectedImages) else images
    places = images.indices if isinstance(images, SelectedImages) else range(len(images))
    if not isinstance(source, ToyFaces):
        raise InvalidOptionError(
            "Errors by part need drawn faces, whose parts are known; for other images, call evaluate(..., masks=)."
        )
    faces = source

    def masks(place: int) -> Masks:
        return faces.face(places[place]).masks

    return masks


class PartErrors:
    """Sums squared errors within masks, image by image."""

    def __init__(self, mean: Float[Tensor, "3 h w"]) -> None:
        """Start empty.

        Args:
            mean: The mean image, whose error is what a model has to remove.
        """
        self._mean = mean
        self._images: list[dict[str, tuple[float, float, float]]] = []

    def update(self, masks: Sequence[Masks], images: Images, reconstructions: Images) -> None:
        """Add a batch of images, each with its masks.

        Raises:
            ShapeError: If a mask has another size than the images.
        """
        own = (reconstructions - images).double().square().mean(dim=1)
        baseline = (self._mean - images).double().square().mean(dim=1)
        self._images += [_sum_within(*entry) for entry in zip(masks, own, baseline, strict=True)]

    def gather(self) -> None:
        """Take in what other processes have."""
        self._images = gather(self._images)

    def compute(self) -> dict[str, PartFigures]:
        """The parts' figures; parts that are in no image are left out."""
        generator = np.random.default_rng(0)
        total = sum(pixels for image in self._images for pixels, _, _ in image.values())
        figures = {}
        for name in dict.fromkeys(name for image in self._images for name in image):
            sums = np.array([image[name] for image in self._images if name in image])
            pixels, own, baseline = sums.sum(axis=0)
            if not pixels or not baseline:
                continue
            draws = sums[generator.integers(len(sums), size=(DRAWS, len(sums)))].sum(axis=1)
            removed = 1 - draws[:, 1] / np.maximum(draws[:, 2], 1e-12)
            low, high = np.percentile(removed, INTERVAL)
            figures[name] = PartFigures(
                float(pixels / total),
                float((own / pixels) ** 0.5),
                float((baseline / pixels) ** 0.5),
                float(1 - own / baseline),
                float(low),
                float(high),
            )
        return figures


def _sum_within(
    masks: Masks, own: Float[Tensor, "h w"], baseline: Float[Tensor, "h w"]
) -> dict[str, tuple[float, float, float]]:
    """Pixels of each part, and sums of squares over them."""
    if not isinstance(masks, Mapping):
        raise InvalidOptionError(f"masks must give an image's masks by name, got {type(masks).__name__}.")
    sums = {}
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise ShapeError(f"The mask {name!r} must be a tensor of truth values [h, w].")
        if mask.shape != own.shape:
            raise ShapeError(f"The mask {name!r} must be {list(own.shape)}, got {list(mask.shape)}.")
        sums[name] = (float(mask.sum()), float(own[mask].sum()), float(baseline[mask].sum()))
    return sums


def radial_energy(images: Images) -> Float[Tensor, " f"]:
    """Energy of images by spatial frequency: the power spectrum summed over rings of whole frequencies.

    Args:
        images: `[b, 3, h, w]`.

    Returns:
        Sum over images, channels and each ring, from frequency 0 to half the shorter side, in float64.
    """
    height, width = images.shape[-2:]
    power = torch.view_as_real(torch.fft.fft2(images, norm="ortho")).square().sum(dim=(0, 1, 4)).double()
    rows = torch.fft.fftfreq(height, device=images.device).abs() * min(height, width)
    columns = torch.fft.fftfreq(width, device=images.device).abs() * min(height, width)
    ring = (rows[:, None].square() + columns.square()).sqrt().round().long()
    count = min(height, width) // 2 + 1
    inside = ring < count
    energy: Tensor = power.new_zeros(count).index_add(0, ring[inside], power[inside])
    return energy
