"""Points without a distribution, such as the frozen features themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
        tau: Largest standard deviation of the noise, at least 0; a number, or a tensor broadcastable against `mean`.
    """

    mean: Latents
    tau: float | Tensor = 0.0

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
        """Add noise: mean + tau * u * eps, u uniform in [0, 1) per item, eps standard normal (Zheng et al. 2025).

        Args:
            generator: Source of randomness, on the points' device; the global one if None. Not used if tau is 0.

        Returns:
            Latents `[b, ...]`; gradients flow to the points.
        """
        mean = self.mean
        if self._is_exact:
            return mean
        per_item = (len(mean), *(1 for _ in mean.shape[1:]))
        level = torch.rand(per_item, generator=generator, device=mean.device, dtype=mean.dtype)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.tau * level * noise

    def kl_per_dimension(self) -> Latents:
        """Zeros, `[b, ...]`."""
        return torch.zeros_like(self.mean)

    def kl(self) -> PerItem:
        """Zeros, `[b]`."""
        return self.mean.new_zeros(len(self.mean))

    def detach(self) -> "PointPosterior":
        """The same points and noise, through which no gradient flows."""
        return PointPosterior(self.mean.detach(), self.tau.detach() if isinstance(self.tau, Tensor) else self.tau)

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
        return PointPosterior((self.mean - mean) / std, self.tau if self._is_exact else self.tau / std)

    @property
    def _is_exact(self) -> bool:
        return not isinstance(self.tau, Tensor) and self.tau == 0
