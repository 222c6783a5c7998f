"""A latent map for images of any size."""

from collections.abc import Sequence

from torch import nn

from transfervae.heads._shared import (
    apply_linear,
    bound_logvar,
    check_channels,
    check_feature_shape,
    full_precision,
    initialise_moments,
)
from transfervae.options import records_options
from transfervae.posteriors import DiagonalGaussian
from transfervae.posteriors.noise import check_noise
from transfervae.shapes import Features, at_least_float32, check_positive

INITIAL_KL_PER_DIMENSION = 0.01
"""Expected KL at the first step, in nats a latent dimension."""


@records_options
class SpatialGaussianHead(nn.Module):
    """Normalise, and map to mean and log-variance of a latent map by two parallel 1x1 convolutions.

    Where things are stays where it was: a latent map has the features' grid. The features of each image are brought to
    mean 0 and variance 1 over (c, h, w) first (layer normalisation without parameters, Ba et al. 2016), whatever the
    network. Weights of the mean start as N(0, s^2 / c) and those of the log-variance at 0. The squares of an image's
    normalised features add up to at most c h w, so that the expected KL at the first step, over initial weights, is at
    most s^2 / 2 a latent dimension, chosen as 0.01 nats: 2.6 nats for 16 channels on a 4x4 grid, 41 on 16x16, little
    beside what a map holds once trained.

    Everything is computed in at least float32, also under autocast. The log-variance is bounded as in `GaussianHead`.

    Attributes:
        in_channels: Channels of the features.
        latent_dim: Channels of the latent map.
    """

    def __init__(
        self, feature_shape: Sequence[int], *, latent_dim: int = 16, tau: float = 0.0, law: str = "uniform"
    ) -> None:
        """Make a head.

        Args:
            feature_shape: (c, h, w), as `FrozenBackbone.feature_shape` gives it; the head takes any grid of c channels.
            latent_dim: Channels of the latent map, at least 1.
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
        in_channels, _, _ = check_feature_shape(feature_shape)
        check_positive(latent_dim=latent_dim)
        self.in_channels = in_channels
        self.latent_dim = latent_dim
        self.tau = tau
        self.law = law
        self.mean = nn.Conv2d(in_channels, latent_dim, kernel_size=1)
        self.logvar = nn.Conv2d(in_channels, latent_dim, kernel_size=1)
        initialise_moments(self.mean, self.logvar, INITIAL_KL_PER_DIMENSION)

    def latent_shape_for(self, feature_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a latent for features of one shape: (latent_dim, h, w).

        Raises:
            ShapeError: If the features have another number of channels than the head was built for.
        """
        _, height, width = check_channels(self.in_channels, feature_shape)
        return self.latent_dim, height, width

    def forward(self, features: Features) -> DiagonalGaussian:
        """Map features to the posterior.

        Args:
            features: `[b, in_channels, h, w]`, any grid, floating dtype and scale.

        Returns:
            The posterior of latents `[b, latent_dim, h, w]`, in float32 (float64 for float64 features).

        Raises:
            ShapeError: If the features have another number of channels than the head was built for.
        """
        check_channels(self.in_channels, features.shape[1:])
        with full_precision(features):
            normal = nn.functional.layer_norm(at_least_float32(features), features.shape[1:])
            mean, logvar = apply_linear(self.mean, normal), bound_logvar(apply_linear(self.logvar, normal))
            return DiagonalGaussian(mean, logvar, self.tau if self.training else 0.0, self.law)
