"""The interface of priors, as models use it."""

from typing import Protocol, runtime_checkable

import torch

from transfervae.shapes import Latents, PerItem


@runtime_checkable
class Prior(Protocol):
    """A distribution over latents: a module with options, a state, and these methods.

    Attributes:
        is_scaled: Whether its latents are those of `encode(..., scaled=True)`, where the model has a scaling.
    """

    is_scaled: bool

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Latents:
        """Draw latents, `[count, *latent_shape]`, on the prior's device."""

    def log_prob(self, latents: Latents) -> PerItem:
        """Log-density of latents `[b, *latent_shape]`, summed over dimensions, in nats, `[b]`."""

    def fit(self, latents: Latents) -> None:
        """Fit to latents `[n, *latent_shape]`; a prior without anything to fit does nothing."""
