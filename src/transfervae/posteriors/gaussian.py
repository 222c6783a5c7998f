"""The diagonal Gaussian: what a head returns, and all mathematics on it in closed form."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transfervae.errors import ShapeError
from transfervae.posteriors.noise import add_noise
from transfervae.posteriors.posterior import Posterior
from transfervae.shapes import Latents, PerItem, at_least_float32


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """A batch of Gaussians with diagonal covariance, one an item.

    Densities and divergences are summed over all axes but the first, in nats, one value per item. Moments are held in
    at least float32: in half precision `exp(logvar)` overflows at 12 and a KL is off by a factor.

    Attributes:
        mean: `[b, ...]`, any trailing shape.
        logvar: `[b, ...]`, natural logarithm of the variance, same shape.
        tau: Standard deviation of noise on draws, in training only, where its level is 1; a number, or a tensor
            broadcastable against `mean`. Densities and divergences are without it.
        law: Of the noise's level, a name from `NOISE_LAWS`.

    Raises:
        ShapeError: If the two shapes differ.
    """

    mean: Latents
    logvar: Latents
    tau: float | Tensor = 0.0
    law: str = "uniform"

    def __post_init__(self) -> None:
        if self.mean.shape != self.logvar.shape:
            raise ShapeError(
                f"mean and logvar must have one shape, got {list(self.mean.shape)} and {list(self.logvar.shape)}."
            )
        object.__setattr__(self, "mean", at_least_float32(self.mean))
        object.__setattr__(self, "logvar", at_least_float32(self.logvar))

    @property
    def std(self) -> Latents:
        """Standard deviation, `[b, ...]`."""
        return (0.5 * self.logvar).exp()

    @property
    def variance(self) -> Latents:
        """Variance, `[b, ...]`."""
        return self.logvar.exp()

    def mode(self) -> Latents:
        """The most likely latent, `[b, ...]`: the mean."""
        return self.mean

    def sample(self, *, generator: torch.Generator | None = None) -> Latents:
        """Draw one latent an item by reparameterisation, mean + std * eps (Kingma & Welling 2014, section 2.4).

        Args:
            generator: Source of randomness, on the moments' device; the global one if None.

        Returns:
            Latents `[b, ...]`; gradients flow to both moments.
        """
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        draw = mean + self.std * noise
        return add_noise(draw, self.tau, self.law, generator) if self._is_noisy else draw

    def kl_per_dimension(self, other: "DiagonalGaussian | None" = None) -> Latents:
        """KL(self || other) of each latent dimension, in nats, `[b, ...]`; `other` is the standard normal if None.

        Source: Kingma & Welling 2014, appendix B.
        """
        if other is None:
            return 0.5 * (self.mean.square() + torch.expm1(self.logvar) - self.logvar)
        log_ratio = self.logvar - other.logvar
        distance = (self.mean - other.mean).square() * (-other.logvar).exp()
        return 0.5 * (distance + torch.expm1(log_ratio) - log_ratio)

    def kl(self, other: "DiagonalGaussian | None" = None) -> PerItem:
        """KL(self || other) summed over latent dimensions, in nats, `[b]`; `other` is the standard normal if None."""
        return _sum_per_item(self.kl_per_dimension(other))

    def log_prob(self, latent: Latents) -> PerItem:
        """Log-density of one latent an item, summed over latent dimensions, in nats, `[b]`.

        Args:
            latent: `[b, ...]`, the moments' shape.
        """
        distance = (latent - self.mean).square() * (-self.logvar).exp()
        return -0.5 * _sum_per_item(distance + self.logvar + math.log(2 * math.pi))

    def entropy(self) -> PerItem:
        """Differential entropy, summed over latent dimensions, in nats, `[b]`."""
        return 0.5 * _sum_per_item(self.logvar + math.log(2 * math.pi * math.e))

    def detach(self) -> "DiagonalGaussian":
        """The same distributions, through which no gradient flows."""
        tau = self.tau.detach() if isinstance(self.tau, Tensor) else self.tau
        return DiagonalGaussian(self.mean.detach(), self.logvar.detach(), tau, self.law)

    def without_noise(self) -> "DiagonalGaussian":
        """The distribution itself: its draws are what it is for."""
        return DiagonalGaussian(self.mean, self.logvar) if self._is_noisy else self

    def moments(self) -> dict[str, Latents]:
        """Both moments, as "mean" and "logvar"."""
        return {"mean": self.mean, "logvar": self.logvar}

    def join(self, others: Sequence[Posterior]) -> "DiagonalGaussian":
        """These distributions and those of other batches as one batch, on the CPU."""
        batches = (self, *others)
        return DiagonalGaussian(
            torch.cat([batch.mean.cpu() for batch in batches]), torch.cat([batch.logvar.cpu() for batch in batches])
        )

    def normalised(self, mean: Tensor, std: Tensor) -> "DiagonalGaussian":
        """The distribution of (latent - mean) / std: N((self.mean - mean) / std, self.variance / std^2).

        Args:
            mean: Broadcastable against the latents.
            std: As `mean`, above 0.
        """
        tau = self.tau / std if self._is_noisy else 0.0
        return DiagonalGaussian((self.mean - mean) / std, self.logvar - 2 * std.log(), tau, self.law)

    @property
    def _is_noisy(self) -> bool:
        return isinstance(self.tau, Tensor) or self.tau != 0


def _sum_per_item(values: Latents) -> PerItem:
    return values.reshape(values.shape[0], -1).sum(dim=1)
