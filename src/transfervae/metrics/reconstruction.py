"""Metrics of reconstructions."""

from typing import Any

from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from transfervae.losses import l1, rmse
from transfervae.metrics.mean import MeanOverImages
from transfervae.model import VAEOutput
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem


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
class SSIM(StructuralSimilarityIndexMeasure):
    """Structural similarity (Wang et al. 2004) of each image for values in [0, 1], mean over images."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(data_range=1.0)

    def update(self, output: VAEOutput, images: Images) -> None:  # type: ignore[override]
        """Add one batch; arguments as in `RMSE`. Sides must be at least 6 pixels long."""
        super().update(output.reconstruction.float(), images)

    def compute(self) -> Any:
        """The mean over the images, in [-1, 1]."""
        return super().compute()
