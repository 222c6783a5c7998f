"""Heads: trainable maps from frozen features to a posterior."""

from transfervae.heads._shared import bound_logvar
from transfervae.heads.deterministic import DeterministicHead
from transfervae.heads.gaussian import GaussianHead
from transfervae.heads.pooled import PooledGaussianHead
from transfervae.heads.spatial import SpatialGaussianHead
from transfervae.options import PartTable

__all__ = ["HEADS", "DeterministicHead", "GaussianHead", "PooledGaussianHead", "SpatialGaussianHead", "bound_logvar"]

HEADS = PartTable(
    "head",
    {
        "gaussian": GaussianHead,
        "spatial": SpatialGaussianHead,
        "pooled": PooledGaussianHead,
        "deterministic": DeterministicHead,
    },
)
"""Heads by name; each takes the shape (c, h, w) of the features, and its options by keyword."""
