"""Metrics of latents."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from transfervae.metrics.mean import MeanOverImages
from transfervae.model import VAEOutput
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem

ACTIVE_NATS = 0.1
"""Information per latent number from which on it counts as active, in nats: a signal of a fifth of the noise."""

SMALLEST_NOISE = 1e-12


@records_options
class MeanKL(MeanOverImages):
    """KL to the standard normal, summed over latent dimensions, mean over images, in nats."""

    higher_is_better = False

    def values(self, output: VAEOutput, images: Images) -> PerItem:  # noqa: ARG002 - the base class's signature
        """The value of each image, `[b]`."""
        return output.posterior.kl()


@records_options
class Rate(MeanOverImages):
    """KL to the standard normal in bits per pixel of the image, mean over images: what the latent costs to transmit.

    It is the code length of bits-back coding with the standard normal as prior (Frey & Hinton 1997), over h * w pixels.
    """

    higher_is_better = False

    def values(self, output: VAEOutput, images: Images) -> PerItem:
        """The value of each image, `[b]`."""
        return output.posterior.kl() / (math.log(2) * images[0, 0].numel())


class LatentMoments(Metric):
    """Base of metrics of each latent number's signal (variance of its mean over images) and noise (mean variance)."""

    is_differentiable = False
    count: Tensor
    sums: Tensor
    squares: Tensor
    noise: Tensor

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        for name in ("count", "sums", "squares", "noise"):  # all but the first grow to one value a latent number
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, output: VAEOutput, images: Images) -> None:
        """Add one batch; arguments as in `MeanKL`."""
        means = output.posterior.mean.flatten(1).double()
        self.count += len(images)
        self.sums = self.sums + means.sum(dim=0)
        self.squares = self.squares + means.square().sum(dim=0)
        self.noise = self.noise + output.posterior.variance.flatten(1).double().sum(dim=0)

    def information(self) -> Float[Tensor, " d"]:
        """Information of each latent number about the image, in nats: log(1 + signal / noise) / 2.

        That is what a draw of one number tells of its mean, if both are Gaussian over the images: the capacity of a
        channel with this signal and noise (Cover & Thomas 2006, section 9.1). It is infinite for points without noise
        that vary, up to the rounding of float64, and 0 for numbers that are the same for all images.
        """
        signal = (self.squares / self.count - (self.sums / self.count).square()).clamp(min=0)
        return 0.5 * torch.log1p(signal / (self.noise / self.count).clamp(min=SMALLEST_NOISE))


@records_options
class ActiveUnits(LatentMoments):
    """Number of latent numbers that a decoder can use: those of at least 0.1 nats of information about the image.

    Burda et al. (2016) count a number whose mean varies over the images with a variance above 0.01, whatever its noise:
    beside a variance of 1 that is 0.005 nats, and nearly all numbers of a map count. Here the variance is compared with
    the noise of the posterior, as in `LatentMoments.information`.
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """The number, a whole one."""
        return (self.information() >= ACTIVE_NATS).sum()


@records_options
class Information(LatentMoments):
    """Information of the latent about the image, in nats: the sum over its numbers of log(1 + signal / noise) / 2.

    An upper bound of the mutual information for Gaussian latents, since what two numbers both tell counts twice; the KL
    is another. Infinite for points without noise.
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """The sum, in nats."""
        return self.information().sum()
