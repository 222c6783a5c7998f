"""How close reconstructions are to their images."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from transfervae.losses import rmse
from transfervae.model import VAEOutput
from transfervae.options import records_options
from transfervae.shapes import Images


@records_options
class RMSE(Metric):
    """Root of the squared error's mean over channels and pixels of each image, mean over images, as `losses.rmse`."""

    higher_is_better = False
    is_differentiable = False
    count: Tensor
    total: Tensor

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        for name in ("count", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, output: VAEOutput, images: Images) -> None:
        """Add one batch.

        Args:
            output: What the model gave.
            images: The images, `[b, 3, h, w]` in [0, 1].
        """
        self.count += len(images)
        self.total += rmse(output.reconstruction, images).double().sum()

    def compute(self) -> Tensor:
        """The mean over the images, in [1e-4, 1]."""
        return self.total / self.count


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
