"""Training, with PyTorch Lightning as the engine (extra `train`)."""

from importlib.util import find_spec

from transfervae.errors import MissingExtraError

if find_spec("pytorch_lightning") is None:
    raise MissingExtraError("Training", "train")

from transfervae.training.engine import is_first_process
from transfervae.training.loggers import LOGGERS
from transfervae.training.module import VAEModule
from transfervae.training.options import DataOptions, EngineOptions, OptimizerOptions
from transfervae.training.recipes import RECIPES, read_recipe
from transfervae.training.run import TrainResult, cache_features, train

__all__ = [
    "LOGGERS",
    "RECIPES",
    "DataOptions",
    "EngineOptions",
    "OptimizerOptions",
    "TrainResult",
    "VAEModule",
    "cache_features",
    "is_first_process",
    "read_recipe",
    "train",
]
