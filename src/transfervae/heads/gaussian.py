"""A latent vector for images of one size."""

import math
from collections.abc import Sequence

from einops import rearrange
from torch import nn

from transfervae.errors import ShapeError
from transfervae.heads._shared import (
    apply_linear,
    bound_logvar,
    check_feature_shape,
    full_precision,
    initialise_moments,
    vector_kl_per_dimension,
)
from transfervae.options import records_options
from transfervae.posteriors import DiagonalGaussian
from transfervae.posteriors.noise import check_noise
from transfervae.shapes import Features, at_least_float32, check_positive


@records_options
class GaussianHead(nn.Module):
    """Flatten, normalise, and map to mean and log-variance by two parallel linear layers.

    Frozen features are large and unevenly scaled. The flattened features of each image are therefore brought to mean 0
    and variance 1 first (layer normalisation without parameters, Ba et al. 2016), so that their norm is at most the
    root of their number n, whatever the network; beyond 2048 of them the layers' inputs are scaled by 2048 / n, so
    that a step of an adaptive optimiser moves the means no further than with 2048. Weights start so that the means are
    N(0, s^2) and the log-variances 0, which makes the expected KL at the first step d s^2 / 2, chosen as min(d / 8, 10)
    nats.

    Everything is computed in at least float32, also under autocast. The log-variance is bounded by
    (2 B / pi) atan(pi x / (2 B)) with B = 10, whose slope is 1 at 0 and falls with 1/x^2 only, so that an extreme value
    still has a gradient back.

    Attributes:
        feature_shape: (c, h, w) of the features.
        latent_dim: Length of the latent vector.
    """

    def __init__(
        self, feature_shape: Sequence[int], *, latent_dim: int = 128, tau: float = 0.0, law: str = "uniform"
    ) -> None:
        """Make a head.

        Args:
            feature_shape: (c, h, w), as `FrozenBackbone.feature_shape` gives it.
            latent_dim: Length of the latent vector, at least 1.
            tau: Standard deviation of extra noise on draws in training, where its level is 1; it makes the decoder
                robust against latents that a generative model gets slightly wrong.
            law: Of the noise's level, drawn per image: uniform (in [0, 1)) or half_normal (|N(0, 1)|).

        Raises:
            ShapeError: If `feature_shape` has not three axes of at least 1.
            InvalidOptionError: If `latent_dim` is below 1, or `tau` negative or not finite.
            UnknownNameError: For another law.
        """
        super().__init__()
        check_noise(tau, law)
        self.feature_shape = check_feature_shape(feature_shape)
        check_positive(latent_dim=latent_dim)
        self.latent_dim = latent_dim
        self.tau = tau
        self.law = law
        features = math.prod(feature_shape)
        self.mean = nn.Linear(features, latent_dim)
        self.logvar = nn.Linear(features, latent_dim)
        initialise_moments(self.mean, self.logvar, vector_kl_per_dimension(latent_dim))

    def latent_shape_for(self, feature_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a latent for features of one shape: (latent_dim,).

        Raises:
            ShapeError: If it is another shape than the head was built for.
        """
        if tuple(feature_shape) != self.feature_shape:
            raise ShapeError(
                f"The head was built for features {list(self.feature_shape)}, got {list(feature_shape)};"
                " features change with the image size."
            )
        return (self.latent_dim,)

    def forward(self, features: Features) -> DiagonalGaussian:
        """Map features to the posterior.

        Args:
            features: `[b, c, h, w]` of `feature_shape`, any floating dtype and scale.

        Returns:
            The posterior of latents `[b, latent_dim]`, in float32 (float64 for float64 features).

        Raises:
            ShapeError: If the features have another shape than the head was built for.
        """
        self.latent_shape_for(features.shape[1:])
        with full_precision(features):
            flat = rearrange(at_least_float32(features), "b c h w -> b (c h w)")
            normal = nn.functional.layer_norm(flat, flat.shape[1:])
            mean, logvar = apply_linear(self.mean, normal), bound_logvar(apply_linear(self.logvar, normal))
            return DiagonalGaussian(mean, logvar, self.tau if self.training else 0.0, self.law)
