"""Training, with PyTorch Lightning as the engine (extra `train`)."""

from importlib.util import find_spec

from transfervae.errors import MissingExtraError

if find_spec("pytorch_lightning") is None:
    raise MissingExtraError("Training", "train")

from transfervae.training.engine import is_first_process
from transfervae.training.module import VAEModule
from transfervae.training.options import EngineOptions, TrainOptions
from transfervae.training.run import TrainResult, cache_features, read_engine, read_options, resumed_options, train

__all__ = [
    "EngineOptions",
    "TrainOptions",
    "TrainResult",
    "VAEModule",
    "cache_features",
    "is_first_process",
    "read_engine",
    "read_options",
    "resumed_options",
    "train",
]
