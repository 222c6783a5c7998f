"""TransferVAE: a frozen pretrained vision network as the encoder of a variational autoencoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transfervae import data, errors, losses, objectives, priors, schedules
from transfervae.backbones import FrozenBackbone, create_backbone, describe_backbone, list_backbones
from transfervae.build import build_vae
from transfervae.cache import FeatureCache
from transfervae.data import ImageFolder, ToyFaces
from transfervae.decoders import (
    DECODERS,
    kl_decoder,
    pixelshuffle_decoder,
    residual_decoder,
    resize_decoder,
    transpose_decoder,
    vit_decoder,
)
from transfervae.heads import HEADS, DeterministicHead, GaussianHead, PooledGaussianHead, SpatialGaussianHead
from transfervae.model import TransferVAE, VAEOutput
from transfervae.objectives import TERMS, Objective, Term, WeightedTerm
from transfervae.options import Spec
from transfervae.posteriors import DiagonalGaussian, PointPosterior, Posterior
from transfervae.priors import PRIORS, ScaledNormal, StandardNormal
from transfervae.scaling import LatentScaling, LatentStatistics

if TYPE_CHECKING:
    from transfervae import evaluation, inference, interop, metrics, pictures, training
    from transfervae.evaluation import evaluate
    from transfervae.metrics import METRICS
    from transfervae.training import TrainResult, compare, train

__version__ = "0.1.0"

__all__ = [
    "DECODERS",
    "HEADS",
    "METRICS",
    "PRIORS",
    "TERMS",
    "DeterministicHead",
    "DiagonalGaussian",
    "FeatureCache",
    "FrozenBackbone",
    "GaussianHead",
    "ImageFolder",
    "LatentScaling",
    "LatentStatistics",
    "Objective",
    "PointPosterior",
    "PooledGaussianHead",
    "Posterior",
    "ScaledNormal",
    "SpatialGaussianHead",
    "Spec",
    "StandardNormal",
    "Term",
    "ToyFaces",
    "TrainResult",
    "TransferVAE",
    "VAEOutput",
    "WeightedTerm",
    "build_vae",
    "compare",
    "create_backbone",
    "data",
    "describe_backbone",
    "errors",
    "evaluate",
    "evaluation",
    "inference",
    "interop",
    "kl_decoder",
    "list_backbones",
    "losses",
    "metrics",
    "objectives",
    "pictures",
    "pixelshuffle_decoder",
    "priors",
    "residual_decoder",
    "resize_decoder",
    "schedules",
    "train",
    "training",
    "transpose_decoder",
    "vit_decoder",
]

_HEAVY = {
    "METRICS": "metrics",
    "evaluate": "evaluation",
    "TrainResult": "training",
    "compare": "training",
    "train": "training",
}
"""Names whose modules import Lightning or torchmetrics: they are imported when they are first asked for."""


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(import_module(f"transfervae.{_HEAVY[name]}"), name)
    if name in __all__:
        return import_module(f"transfervae.{name}")
    raise AttributeError(f"module 'transfervae' has no attribute {name!r}")
