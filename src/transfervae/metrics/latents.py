"""Metrics of latents."""

import torch
from torch import Tensor
from torchmetrics import Metric

from transfervae.metrics.mean import MeanOverImages
from transfervae.model import VAEOutput
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem

ACTIVE_VARIANCE = 0.01


@records_options
class MeanKL(MeanOverImages):
    """KL to the standard normal, summed over latent dimensions, mean over images, in nats."""

    higher_is_better = False

    def values(self, output: VAEOutput, images: Images) -> PerItem:  # noqa: ARG002 - the base class's signature
        """The value of each image, `[b]`."""
        return output.posterior.kl()


@records_options
class ActiveUnits(Metric):
    """Number of latent dimensions whose mean varies over the images with a variance above 0.01 (Burda et al. 2016)."""

    higher_is_better = True
    is_differentiable = False
    count: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        for name in ("count", "sums", "squares"):  # the latter two grow to one value a dimension
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, output: VAEOutput, images: Images) -> None:
        """Add one batch; arguments as in `MeanKL`."""
        means = output.posterior.mean.flatten(1).double()
        self.count += len(images)
        self.sums = self.sums + means.sum(dim=0)
        self.squares = self.squares + means.square().sum(dim=0)

    def compute(self) -> Tensor:
        """The number, a whole one."""
        variance = self.squares / self.count - (self.sums / self.count).square()
        return (variance > ACTIVE_VARIANCE).sum()
