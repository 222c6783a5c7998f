"""The standard normal, in the latents' own space or in the scaled one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from transfervae.errors import InvalidOptionError, ShapeError
from transfervae.options import records_options
from transfervae.shapes import Latents, PerItem


@records_options
class StandardNormal(nn.Module):
    """N(0, 1) in every dimension of a latent: the prior that the KL term pulls posteriors to.

    Attributes:
        latent_shape: Shape of one latent.
        temperature: Standard deviation of the draws.
        is_scaled: False: draws are latents as the head gives them.
    """

    is_scaled = False
    origin: Tensor

    def __init__(self, latent_shape: Sequence[int], *, temperature: float = 1.0) -> None:
        """Make a prior.

        Args:
            latent_shape: Shape of one latent.
            temperature: Standard deviation of the draws, above 0; below 1 they are more alike and mostly cleaner.

        Raises:
            InvalidOptionError: If `temperature` is not above 0 and finite.
        """
        super().__init__()
        if not 0 < temperature < math.inf:
            raise InvalidOptionError(f"temperature must be above 0 and finite, got {temperature}.")
        self.latent_shape = tuple(latent_shape)
        self.temperature = temperature
        self.register_buffer("origin", torch.zeros(()), persistent=False)  # says which device draws are made on

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Latents:
        """Draw latents.

        Args:
            count: How many.
            generator: Source of randomness, on the prior's device; the global one if None.

        Returns:
            `[count, *latent_shape]`, float32.
        """
        draws = torch.randn(count, *self.latent_shape, generator=generator, device=self.origin.device)
        return draws if self.temperature == 1 else self.temperature * draws

    def log_prob(self, latents: Latents) -> PerItem:
        """Log-density, summed over dimensions, in nats, `[b]`.

        Args:
            latents: `[b, *latent_shape]`.

        Raises:
            ShapeError: If the latents have another shape.
        """
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise ShapeError(f"The prior is for latents {list(self.latent_shape)}, got {list(latents.shape[1:])}.")
        squares = (latents / self.temperature).square().flatten(1).sum(dim=1)
        size = math.prod(self.latent_shape)
        return -0.5 * squares - size * (0.5 * math.log(2 * math.pi) + math.log(self.temperature))

    def fit(self, latents: Latents) -> None:
        """Do nothing: there is nothing to fit."""


@records_options
class ScaledNormal(StandardNormal):
    """The standard normal in scaled space: latents with the mean and variance of the images' latents.

    It is for heads that nothing draws towards a standard normal. In a model without a scaling it is the standard
    normal itself.

    Attributes:
        latent_shape: Shape of one latent.
        temperature: Standard deviation of the draws.
        is_scaled: True: draws are latents of mean 0 and variance 1.
    """

    is_scaled = True

    def __init__(self, latent_shape: Sequence[int], *, temperature: float = 1.0) -> None:
        """Make a prior.

        Args:
            latent_shape: Shape of one latent.
            temperature: Standard deviation of the draws in scaled space, above 0.

        Raises:
            InvalidOptionError: If `temperature` is not above 0 and finite.
        """
        super().__init__(latent_shape, temperature=temperature)
