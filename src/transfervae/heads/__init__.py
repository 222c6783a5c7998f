"""Heads: trainable maps from frozen features to a posterior."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from transfervae.heads.deterministic import DeterministicHead
from transfervae.heads.gaussian import GaussianHead
from transfervae.heads.moments import bound_logvar
from transfervae.heads.pooled import PooledGaussianHead
from transfervae.heads.spatial import SpatialGaussianHead

__all__ = ["HEADS", "DeterministicHead", "GaussianHead", "PooledGaussianHead", "SpatialGaussianHead", "bound_logvar"]

AnyHead: TypeAlias = GaussianHead | SpatialGaussianHead | PooledGaussianHead | DeterministicHead

HEADS: Mapping[str, type[AnyHead]] = MappingProxyType(
    {
        "gaussian": GaussianHead,
        "spatial": SpatialGaussianHead,
        "pooled": PooledGaussianHead,
        "deterministic": DeterministicHead,
    }
)
"""Heads by name: `HEADS[name].for_features(feature_shape)` makes one."""
