"""Features computed once and kept on disk: a frozen backbone gives the same ones for the same images in every epoch."""

from transfervae.cache.builder import CacheBuilder
from transfervae.cache.feature_cache import CachedItem, FeatureCache
from transfervae.cache.manifest import DTYPES, Manifest
from transfervae.cache.sampler import WindowSampler

__all__ = ["DTYPES", "CacheBuilder", "CachedItem", "FeatureCache", "Manifest", "WindowSampler"]
