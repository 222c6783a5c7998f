"""TransferVAE: a frozen pretrained vision network as the encoder of a variational autoencoder."""

from transfervae import data, errors, losses, schedules
from transfervae.backbones import FrozenBackbone, create_backbone
from transfervae.cache import FeatureCache
from transfervae.decoders import pixelshuffle_decoder, resize_decoder, transpose_decoder
from transfervae.gaussian import DiagonalGaussian
from transfervae.heads import DeterministicHead, GaussianHead, PooledGaussianHead, SpatialGaussianHead
from transfervae.model import TransferVAE, VAEOutput, build_vae
from transfervae.posterior import PointPosterior, Posterior
from transfervae.scaling import LatentScaling, LatentStatistics

__version__ = "0.1.0"

__all__ = [
    "DeterministicHead",
    "DiagonalGaussian",
    "FeatureCache",
    "FrozenBackbone",
    "GaussianHead",
    "LatentScaling",
    "LatentStatistics",
    "PointPosterior",
    "PooledGaussianHead",
    "Posterior",
    "SpatialGaussianHead",
    "TransferVAE",
    "VAEOutput",
    "build_vae",
    "create_backbone",
    "data",
    "errors",
    "losses",
    "pixelshuffle_decoder",
    "resize_decoder",
    "schedules",
    "transpose_decoder",
]
