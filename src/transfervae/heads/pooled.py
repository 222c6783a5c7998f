"""A latent vector for images of any size."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from transfervae.heads._shared import (
    apply_linear,
    bound_logvar,
    check_channels,
    check_feature_shape,
    full_precision,
    initialise_moments,
    vector_kl_per_dimension,
)
from transfervae.options import records_options
from transfervae.posteriors import DiagonalGaussian
from transfervae.posteriors.noise import check_noise
from transfervae.shapes import Features, at_least_float32, check_positive

PLACE_FREQUENCIES = 4
"""Cosines along each axis that a query's preference for places is made of."""


@records_options
class PooledGaussianHead(nn.Module):
    """Pool the grid by attention with several learned queries, then map to mean and log-variance by two linear layers.

    The features of each image are brought to mean 0 and variance 1 (layer normalisation without parameters, Ba et al.
    2016). Each query q averages them over the grid with weights softmax_p(x_p . w_q / sqrt(c) + a_q(p)): w_q asks for
    content, and a_q, a sum of the cosines cos(pi k u) cos(pi l v) with k, l below 4 over relative coordinates u and v,
    for a place, which an average would otherwise lose. Nothing in it depends on the grid, so that the same head takes
    images of every size. The pooled features of all queries are normalised together once more; initial weights and the
    expected KL at the first step, min(d / 8, 10) nats, are then those of `GaussianHead`.

    Everything is computed in at least float32, also under autocast. The log-variance is bounded as in `GaussianHead`.

    Attributes:
        in_channels: Channels of the features.
        latent_dim: Length of the latent vector.
        queries: Number of queries.
    """

    def __init__(
        self,
        feature_shape: Sequence[int],
        *,
        latent_dim: int = 128,
        queries: int = 16,
        tau: float = 0.0,
        law: str = "uniform",
    ) -> None:
        """Make a head.

        Args:
            feature_shape: (c, h, w), as `FrozenBackbone.feature_shape` gives it; the head takes any grid of c channels.
            latent_dim: Length of the latent vector, at least 1.
            queries: Number of queries, at least 1; the two linear layers have `queries * c` inputs.
            tau: Standard deviation of extra noise on draws in training, where its level is 1; it makes the decoder
                robust against latents that a generative model gets slightly wrong.
            law: Of the noise's level, drawn per image: uniform (in [0, 1)) or half_normal (|N(0, 1)|).

        Raises:
            ShapeError: If `feature_shape` has not three axes of at least 1.
            InvalidOptionError: If a number is out of range.
            UnknownNameError: For another law.
        """
        super().__init__()
        check_noise(tau, law)
        in_channels, _, _ = check_feature_shape(feature_shape)
        check_positive(latent_dim=latent_dim, queries=queries)
        self.in_channels = in_channels
        self.latent_dim = latent_dim
        self.tau = tau
        self.law = law
        self.queries = queries
        self.content = nn.Parameter(torch.randn(queries, in_channels))
        # The product of the two constant cosines would shift all weights alike, which the softmax takes out again.
        self.place = nn.Parameter(torch.randn(queries, PLACE_FREQUENCIES**2 - 1))
        self.mean = nn.Linear(queries * in_channels, latent_dim)
        self.logvar = nn.Linear(queries * in_channels, latent_dim)
        initialise_moments(self.mean, self.logvar, vector_kl_per_dimension(latent_dim))

    def latent_shape_for(self, feature_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a latent for features of one shape: (latent_dim,).

        Raises:
            ShapeError: If the features have another number of channels than the head was built for.
        """
        check_channels(self.in_channels, feature_shape)
        return (self.latent_dim,)

    def forward(self, features: Features) -> DiagonalGaussian:
        """Map features to the posterior.

        Args:
            features: `[b, in_channels, h, w]`, any grid, floating dtype and scale.

        Returns:
            The posterior of latents `[b, latent_dim]`, in float32 (float64 for float64 features).

        Raises:
            ShapeError: If the features have another number of channels than the head was built for.
        """
        check_channels(self.in_channels, features.shape[1:])
        with full_precision(features):
            normal = nn.functional.layer_norm(at_least_float32(features), features.shape[1:])
            pooled = rearrange(self.attention(normal) @ rearrange(normal, "b c h w -> b (h w) c"), "b q c -> b (q c)")
            pooled = nn.functional.layer_norm(pooled, pooled.shape[1:])
            mean, logvar = apply_linear(self.mean, pooled), bound_logvar(apply_linear(self.logvar, pooled))
            return DiagonalGaussian(mean, logvar, self.tau if self.training else 0.0, self.law)

    def attention(self, normal: Features) -> Float[Tensor, "b queries cells"]:
        """Weights of the cells of the grid, row by row, for each query; they add up to 1.

        Args:
            normal: Normalised features, `[b, in_channels, h, w]`.
        """
        content = self.content.to(normal.dtype) / math.sqrt(self.in_channels)
        wanted = content @ rearrange(normal, "b c h w -> b c (h w)")
        places = self.place.to(normal.dtype) @ _place_basis(normal)
        return (wanted + places).softmax(dim=-1)


def _place_basis(grid: Tensor) -> Float[Tensor, "waves cells"]:
    """cos(pi k u) cos(pi l v) at the cells' centres, u and v in (0, 1), without k = l = 0."""
    rows, columns = (_cosines(side, grid) for side in grid.shape[-2:])
    return torch.einsum("ku,lv->kluv", rows, columns).reshape(PLACE_FREQUENCIES**2, -1)[1:]


def _cosines(cells: int, like: Tensor) -> Float[Tensor, "waves cells"]:
    centres = (torch.arange(cells, device=like.device, dtype=like.dtype) + 0.5) / cells
    frequencies = torch.arange(PLACE_FREQUENCIES, device=like.device, dtype=like.dtype)
    return torch.cos(math.pi * frequencies.unsqueeze(1) * centres)
