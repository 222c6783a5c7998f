"""A latent map for images of any size."""

from collections.abc import Sequence

from torch import nn

from transfervae.gaussian import DiagonalGaussian, at_least_float32
from transfervae.heads.checks import check_channels, check_feature_shape
from transfervae.heads.moments import apply_linear, bound_logvar, full_precision, initialise_moments
from transfervae.shapes import Features, check_positive

INITIAL_KL_PER_DIMENSION = 0.01
"""Expected KL at the first step, in nats a latent dimension."""


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
        latent_channels: Channels of the latent map.
    """

    def __init__(self, in_channels: int, latent_channels: int = 16) -> None:
        """Make a head.

        Args:
            in_channels: Channels of the features, at least 1.
            latent_channels: Channels of the latent map, at least 1.

        Raises:
            InvalidOptionError: If one is below 1.
        """
        super().__init__()
        check_positive(in_channels=in_channels, latent_channels=latent_channels)
        self.in_channels = in_channels
        self.latent_channels = latent_channels
        self.mean = nn.Conv2d(in_channels, latent_channels, kernel_size=1)
        self.logvar = nn.Conv2d(in_channels, latent_channels, kernel_size=1)
        initialise_moments(self.mean, self.logvar, INITIAL_KL_PER_DIMENSION)

    @classmethod
    def for_features(cls, feature_shape: Sequence[int], latent_dim: int | None = None) -> "SpatialGaussianHead":
        """Make a head for features of one shape.

        Args:
            feature_shape: (c, h, w), as `FrozenBackbone.feature_shape` gives it.
            latent_dim: Channels of the latent map; 16 if None.

        Raises:
            ShapeError: If `feature_shape` has not three axes of at least 1.
            InvalidOptionError: If `latent_dim` is below 1.
        """
        channels, _, _ = check_feature_shape(feature_shape)
        return cls(channels) if latent_dim is None else cls(channels, latent_dim)

    @property
    def config(self) -> dict[str, object]:
        """What `HEADS` needs to build this head again: plain values."""
        return {"kind": "spatial", "in_channels": self.in_channels, "latent_channels": self.latent_channels}

    def latent_shape_for(self, feature_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a latent for features of one shape: (latent_channels, h, w).

        Raises:
            ShapeError: If the features have another number of channels than the head was built for.
        """
        _, height, width = check_channels(self.in_channels, feature_shape)
        return self.latent_channels, height, width

    def forward(self, features: Features) -> DiagonalGaussian:
        """Map features to the posterior.

        Args:
            features: `[b, in_channels, h, w]`, any grid, floating dtype and scale.

        Returns:
            The posterior of latents `[b, latent_channels, h, w]`, in float32 (float64 for float64 features).

        Raises:
            ShapeError: If the features have another number of channels than the head was built for.
        """
        check_channels(self.in_channels, features.shape[1:])
        with full_precision(features):
            normal = nn.functional.layer_norm(at_least_float32(features), features.shape[1:])
            return DiagonalGaussian(apply_linear(self.mean, normal), bound_logvar(apply_linear(self.logvar, normal)))
