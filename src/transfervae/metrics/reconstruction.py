"""Metrics of reconstructions."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio

from transfervae.errors import InvalidOptionError
from transfervae.losses import l1, rmse
from transfervae.metrics.mean import MeanOverImages
from transfervae.model import VAEOutput
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem

WINDOW = 11
"""Width of the window of structural similarity, in pixels."""

SPREAD = 1.5
"""Standard deviation of the window, in pixels."""

LUMINANCE, CONTRAST = 0.01**2, 0.03**2
"""Constants that keep the quotients of structural similarity stable, for values in [0, 1]."""

SMALLEST_MS_SSIM = 16 * WINDOW
"""Shortest side of images that fit the window at the coarsest of five scales, in pixels."""


@records_options
class RMSE(MeanOverImages):
    """Root of the squared error's mean over channels and pixels of each image, mean over images, as `losses.rmse`."""

    higher_is_better = False

    def values(self, output: VAEOutput, images: Images) -> PerItem:
        """The value of each image, `[b]`."""
        return rmse(output.reconstruction, images)


@records_options
class L1(MeanOverImages):
    """Absolute error, mean over channels and pixels of each image, mean over images, as `losses.l1`."""

    higher_is_better = False

    def values(self, output: VAEOutput, images: Images) -> PerItem:
        """The value of each image, `[b]`."""
        return l1(output.reconstruction, images)


@records_options
class PSNR(PeakSignalNoiseRatio):
    """Peak signal-to-noise ratio of each image for values in [0, 1], mean over images, in dB."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")

    def update(self, output: VAEOutput, images: Images) -> None:  # type: ignore[override]
        """Add one batch; arguments as in `RMSE`."""
        super().update(output.reconstruction.float(), images)


@records_options
class SSIM(MeanOverImages):
    """Structural similarity (Wang et al. 2004) of each image for values in [0, 1], mean over images.

    The mean is over windows that lie within the image, as in the paper and in scikit-image (torchmetrics continues
    images by reflection), and sums over windows are matrix products: on a CPU a convolution takes several times longer.
    """

    higher_is_better = True

    def values(self, output: VAEOutput, images: Images) -> PerItem:
        """The value of each image, `[b]`."""
        return structural_similarity(output.reconstruction, images)


def structural_similarity(reconstruction: Images, images: Images) -> PerItem:
    """Structural similarity of two images for values in [0, 1] (Wang et al. 2004, equation 13), in [-1, 1].

    Windows are Gaussian, 11 pixels wide (in smaller images, as wide as they fit) with a standard deviation of 1.5.

    Args:
        reconstruction: `[b, 3, h, w]` in [0, 1].
        images: `[b, 3, h, w]` in [0, 1].
    """
    one, other = reconstruction.float(), images.float()
    rows, columns = (_windows(side, one.device) for side in one.shape[2:])
    values = torch.stack([one, other, one * one, other * other, one * other])
    mean, other_mean, square, other_square, product = rows @ values @ columns.T
    variances = square - mean.square() + other_square - other_mean.square()
    brightness = (2 * mean * other_mean + LUMINANCE) / (mean.square() + other_mean.square() + LUMINANCE)
    structure = (2 * (product - mean * other_mean) + CONTRAST) / (variances.clamp(min=0) + CONTRAST)
    similarity: Tensor = (brightness * structure).flatten(1).mean(dim=1)
    return similarity


def _windows(side: int, device: torch.device) -> Float[Tensor, "positions side"]:
    """Each row weighs the pixels in one window."""
    width = min(WINDOW, side)
    weights = torch.exp(-0.5 * ((torch.arange(width, dtype=torch.float64) - (width - 1) / 2) / SPREAD).square())
    windows = torch.zeros(side - width + 1, side, dtype=torch.float64)
    for first, row in enumerate(windows):
        row[first : first + width] = weights / weights.sum()
    return windows.float().to(device)


@records_options
class MSSSIM(MeanOverImages):
    """Multi-scale structural similarity (Wang et al. 2003) for values in [0, 1], mean over images.

    Five scales with a window of 11 pixels: images must be at least 176 pixels a side.
    """

    higher_is_better = True

    def values(self, output: VAEOutput, images: Images) -> PerItem:
        """The value of each image, `[b]`.

        Raises:
            InvalidOptionError: If the images are too small.
        """
        if min(images.shape[2:]) < SMALLEST_MS_SSIM:
            raise InvalidOptionError(
                f"ms_ssim needs images of at least {SMALLEST_MS_SSIM} pixels a side, got {images.shape[2]}x"
                f"{images.shape[3]}; ssim takes smaller ones."
            )
        similarity: Any = multiscale_structural_similarity_index_measure(
            output.reconstruction.float(), images, data_range=1.0, reduction="none"
        )
        return torch.as_tensor(similarity)
