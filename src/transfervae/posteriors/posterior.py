"""The interface of posteriors: distributions or single points, as heads return them."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from transfervae.shapes import Latents, PerItem


@runtime_checkable
class Posterior(Protocol):
    """A batch of posteriors, one an item: `DiagonalGaussian` and `PointPosterior` are two."""

    @property
    def mean(self) -> Latents:
        """Expected latent, `[b, ...]`."""

    @property
    def variance(self) -> Latents:
        """Variance about the mean, `[b, ...]`; zero for a point."""

    @property
    def logvar(self) -> Latents:
        """Natural logarithm of the variance, `[b, ...]`; -30 for a point."""

    def mode(self) -> Latents:
        """The most likely latent, `[b, ...]`."""

    def sample(self, *, generator: torch.Generator | None = None) -> Latents:
        """Draw one latent an item, `[b, ...]`; gradients flow through it."""

    def kl(self) -> PerItem:
        """KL to the standard normal, summed over latent dimensions, in nats, `[b]`."""

    def kl_per_dimension(self) -> Latents:
        """KL to the standard normal of each latent dimension, in nats, `[b, ...]`."""

    def detach(self) -> "Posterior":
        """The same posterior, through which no gradient flows."""

    def without_noise(self) -> "Posterior":
        """The posterior of latents as they are stored and generated: without noise that belongs to training alone."""

    def moments(self) -> Mapping[str, Latents]:
        """The posterior's parameters by name: "mean", and "logvar" of a distribution."""

    def join(self, others: Sequence["Posterior"]) -> "Posterior":
        """This batch and other batches of the same kind as one, on the CPU."""

    def normalised(self, mean: Tensor, std: Tensor) -> "Posterior":
        """The posterior of (latent - mean) / std."""
