"""The features themselves as latents."""

from collections.abc import Sequence

from torch import nn

from transfervae.errors import InvalidOptionError
from transfervae.heads.checks import check_feature_shape
from transfervae.posterior import PointPosterior
from transfervae.shapes import Features


class DeterministicHead(nn.Module):
    """Take the frozen features as latents, as representation autoencoders do (Zheng et al. 2025).

    It has no parameters: only the decoder is trained, and there is no KL. Latents have the features' scale;
    `TransferVAE.fit_scaling` brings them to mean 0 and variance 1.

    Attributes:
        tau: Largest standard deviation of the noise on latents in training.
    """

    def __init__(self, tau: float = 0.0) -> None:
        """Make a head.

        Args:
            tau: Largest standard deviation of the noise on latents in training, at least 0; representation
                autoencoders take 0.8 where features have variance 1. See `PointPosterior.sample`.

        Raises:
            InvalidOptionError: If `tau` is negative or not finite.
        """
        super().__init__()
        if not 0 <= tau < float("inf"):
            raise InvalidOptionError(f"tau must be finite and at least 0, got {tau}.")
        self.tau = tau

    @classmethod
    def for_features(cls, feature_shape: Sequence[int], latent_dim: int | None = None) -> "DeterministicHead":
        """Make a head for features of one shape.

        Args:
            feature_shape: (c, h, w), any.
            latent_dim: Must be None: the latents are the features.

        Raises:
            InvalidOptionError: If `latent_dim` is given.
            ShapeError: If `feature_shape` has not three axes of at least 1.
        """
        channels, _, _ = check_feature_shape(feature_shape)
        if latent_dim is not None:
            raise InvalidOptionError(
                f"The head 'deterministic' takes the {channels} channels of the features as they are; leave latent_dim"
                f" out, got {latent_dim}."
            )
        return cls()

    @property
    def config(self) -> dict[str, object]:
        """What `HEADS` needs to build this head again: plain values."""
        return {"kind": "deterministic", "tau": self.tau}

    def latent_shape_for(self, feature_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a latent for features of one shape: the same.

        Raises:
            ShapeError: If `feature_shape` has not three axes of at least 1.
        """
        return check_feature_shape(feature_shape)

    def forward(self, features: Features) -> PointPosterior:
        """Wrap features `[b, c, h, w]` as points, in at least float32."""
        return PointPosterior(features, self.tau)
