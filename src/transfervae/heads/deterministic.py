"""The features themselves as latents."""

from collections.abc import Sequence

from torch import nn

from transfervae.heads._shared import check_feature_shape
from transfervae.options import records_options
from transfervae.posteriors import PointPosterior
from transfervae.posteriors.noise import check_noise
from transfervae.shapes import Features


@records_options
class DeterministicHead(nn.Module):
    """Take the frozen features as latents, as representation autoencoders do (Zheng et al. 2025).

    It has no parameters: only the decoder is trained, and there is no KL. Latents have the features' scale;
    `TransferVAE.fit_scaling` brings them to mean 0 and variance 1.

    Attributes:
        tau: Standard deviation of the noise on latents in training, where its level is 1.
        law: Of the noise's level.
    """

    output_label = "latents"
    prior = "scaled_normal"
    """Nothing drew the latents towards a standard normal; only scaled ones have its mean and variance."""

    def __init__(self, feature_shape: Sequence[int], *, tau: float = 0.0, law: str = "uniform") -> None:
        """Make a head.

        Args:
            feature_shape: (c, h, w), as `FrozenBackbone.feature_shape` gives it; the head takes any shape.
            tau: Standard deviation of the noise on latents in training, where its level is 1, at least 0;
                representation autoencoders take 0.8 where features have variance 1. See `PointPosterior.sample`.
            law: Of the noise's level, drawn per image: uniform (in [0, 1)) or half_normal (|N(0, 1)|).

        Raises:
            InvalidOptionError: If `tau` is negative or not finite.
            UnknownNameError: For another law.
            ShapeError: If `feature_shape` has not three axes of at least 1.
        """
        super().__init__()
        check_feature_shape(feature_shape)
        check_noise(tau, law)
        self.tau = tau
        self.law = law

    def latent_shape_for(self, feature_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a latent for features of one shape: the same.

        Raises:
            ShapeError: If `feature_shape` has not three axes of at least 1.
        """
        return check_feature_shape(feature_shape)

    def forward(self, features: Features) -> PointPosterior:
        """Wrap features `[b, c, h, w]` as points, in at least float32."""
        return PointPosterior(features, self.tau, self.law)
