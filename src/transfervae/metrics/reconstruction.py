"""Metrics of reconstructions."""

from typing import Any

import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio

from transfervae.errors import InvalidOptionError
from transfervae.losses import SSIM_WINDOW, l1, rmse, structural_similarity
from transfervae.metrics.mean import MeanOverImages
from transfervae.model import VAEOutput
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem

SMALLEST_MS_SSIM = 16 * SSIM_WINDOW
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
