"""Points without a distribution, such as the frozen features themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transfervae.posteriors.noise import add_noise
from transfervae.posteriors.posterior import Posterior
from transfervae.shapes import Latents, PerItem, at_least_float32

SMALLEST_LOGVAR = -30.0
"""Log-variance of a point: where diffusers bounds those of distributions from below."""


@dataclass(frozen=True, eq=False)
class PointPosterior:
    """A batch of single points, one an item, with noise around them in training only.

    There is no distribution to compare with the prior, so that the KL counts as 0. The noise is that of representation
    autoencoders (Zheng et al. 2025): it makes a decoder robust against latents that a generative model gets slightly
    wrong.

    Attributes:
        mean: `[b, ...]`, the points; held in at least float32.
        tau: Standard deviation of the noise where its level is 1, at least 0; a number, or a tensor broadcastable
            against `mean`.
        law: Of the noise's level, a name from `NOISE_LAWS`.
    """

    mean: Latents
    tau: float | Tensor = 0.0
    law: str = "uniform"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", at_least_float32(self.mean))

    @property
    def variance(self) -> Latents:
        """Zero, `[b, ...]`: the noise belongs to training, not to the latents."""
        return torch.zeros_like(self.mean)

    @property
    def logvar(self) -> Latents:
        """-30, `[b, ...]`: a variance of next to nothing."""
        return torch.full_like(self.mean, SMALLEST_LOGVAR)

    def mode(self) -> Latents:
        """The points themselves, `[b, ...]`."""
        return self.mean

    def sample(self, *, generator: torch.Generator | None = None) -> Latents:
        """Add noise: mean + tau * level * eps, one level per item by `law`, eps standard normal (Zheng et al. 2025).

        Args:
            generator: Source of randomness, on the points' device; the global one if None. Not used if tau is 0.

        Returns:
            Latents `[b, ...]`; gradients flow to the points.
        """
        return self.mean if self._is_exact else add_noise(self.mean, self.tau, self.law, generator)

    def kl_per_dimension(self) -> Latents:
        """Zeros, `[b, ...]`."""
        return torch.zeros_like(self.mean)

    def kl(self) -> PerItem:
        """Zeros, `[b]`."""
        return self.mean.new_zeros(len(self.mean))

    def detach(self) -> "PointPosterior":
        """The same points and noise, through which no gradient flows."""
        tau = self.tau.detach() if isinstance(self.tau, Tensor) else self.tau
        return PointPosterior(self.mean.detach(), tau, self.law)

    def without_noise(self) -> "PointPosterior":
        """The points alone."""
        return PointPosterior(self.mean)

    def moments(self) -> dict[str, Latents]:
        """The points, as "mean"."""
        return {"mean": self.mean}

    def join(self, others: Sequence[Posterior]) -> "PointPosterior":
        """These points and those of other batches as one batch, on the CPU, without noise."""
        return PointPosterior(torch.cat([batch.mean.cpu() for batch in (self, *others)]))

    def normalised(self, mean: Tensor, std: Tensor) -> "PointPosterior":
        """The posterior of (latent - mean) / std: noise is added before the scaling, and so is scaled with it.

        Args:
            mean: Broadcastable against the latents.
            std: As `mean`, above 0.
        """
        return PointPosterior((self.mean - mean) / std, self.tau if self._is_exact else self.tau / std, self.law)

    @property
    def _is_exact(self) -> bool:
        return not isinstance(self.tau, Tensor) and self.tau == 0
