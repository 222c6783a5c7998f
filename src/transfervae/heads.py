"""Heads: trainable maps from frozen features to a posterior."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from einops import rearrange
from torch import Tensor, nn

from transfervae.errors import ShapeError
from transfervae.gaussian import DiagonalGaussian
from transfervae.shapes import Features, check_positive

LOGVAR_BOUND = 10.0
"""log-variances stay within ±10: standard deviations from 0.0067 to 148."""

INITIAL_KL = 10.0
"""Upper limit of the expected KL at the first step, in nats."""


class GaussianHead(nn.Module):
    """Flatten, normalise, and map to mean and log-variance by two parallel linear layers.

    Frozen features are large and unevenly scaled. The flattened features of each image are therefore brought to mean 0
    and variance 1 first (layer normalisation without parameters, Ba et al. 2016), so that their norm is at most the
    root of their number n, whatever the network. Weights of the mean start as N(0, s^2 / n) and those of the
    log-variance at 0, which makes the expected KL at the first step d s^2 / 2, chosen as min(d / 8, 10) nats.

    Everything is computed in at least float32, also under autocast. The log-variance is bounded by
    (2 B / pi) atan(pi x / (2 B)) with B = 10, whose slope is 1 at 0 and falls with 1/x^2 only, so that an extreme value
    still has a gradient back.

    Attributes:
        feature_shape: (c, h, w) of the features.
        latent_shape: (latent_dim,).
    """

    def __init__(self, feature_shape: Sequence[int], latent_dim: int = 128) -> None:
        """Make a head.

        Args:
            feature_shape: (c, h, w), as `FrozenBackbone.feature_shape` gives it.
            latent_dim: Length of the latent vector, at least 1.

        Raises:
            ShapeError: If `feature_shape` has not three axes of at least 1.
            InvalidOptionError: If `latent_dim` is below 1.
        """
        super().__init__()
        if len(feature_shape) != 3 or min(feature_shape) < 1:
            raise ShapeError(f"feature_shape must be (c, h, w), each at least 1, got {tuple(feature_shape)}.")
        check_positive(latent_dim=latent_dim)
        channels, height, width = feature_shape
        self.feature_shape = (channels, height, width)
        self.latent_shape = (latent_dim,)
        features = math.prod(feature_shape)
        self.mean = nn.Linear(features, latent_dim)
        self.logvar = nn.Linear(features, latent_dim)
        self._initialise()

    @property
    def config(self) -> dict[str, object]:
        """What `HEADS` needs to build this head again: plain values."""
        return {"kind": "gaussian", "feature_shape": list(self.feature_shape), "latent_dim": self.latent_shape[0]}

    def forward(self, features: Features) -> DiagonalGaussian:
        """Map features to the posterior.

        Args:
            features: `[b, c, h, w]` of `feature_shape`, any floating dtype and scale.

        Returns:
            The posterior of latents `[b, latent_dim]`, in float32 (float64 for float64 features).

        Raises:
            ShapeError: If the features have another shape than the head was built for.
        """
        if tuple(features.shape[1:]) != self.feature_shape:
            raise ShapeError(
                f"The head was built for features {list(self.feature_shape)}, got {list(features.shape[1:])};"
                " features change with the image size."
            )
        with torch.autocast(features.device.type, enabled=False):
            dtype = torch.promote_types(features.dtype, torch.float32)
            flat = rearrange(features.to(dtype), "b c h w -> b (c h w)")
            normal = nn.functional.layer_norm(flat, flat.shape[1:])
            return DiagonalGaussian(_apply(self.mean, normal), bound_logvar(_apply(self.logvar, normal)))

    def _initialise(self) -> None:
        latent_dim, features = self.mean.weight.shape
        variance = 2 * min(latent_dim / 8, INITIAL_KL) / latent_dim
        nn.init.normal_(self.mean.weight, std=math.sqrt(variance / features))
        nn.init.zeros_(self.logvar.weight)
        nn.init.zeros_(self.mean.bias)
        nn.init.zeros_(self.logvar.bias)


def bound_logvar(values: Tensor) -> Tensor:
    """Bound log-variances smoothly to ±`LOGVAR_BOUND`; the slope is 1 at 0 and falls only with 1/x^2."""
    scale = 2 * LOGVAR_BOUND / math.pi
    return scale * torch.atan(values / scale)


HEADS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({"gaussian": GaussianHead})
"""Heads by the name that a saved model holds."""


def _apply(layer: nn.Linear, values: Tensor) -> Tensor:
    return nn.functional.linear(values, layer.weight.to(values.dtype), layer.bias.to(values.dtype))
