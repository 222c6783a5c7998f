"""Training, with PyTorch Lightning as the engine (extra `train`)."""

from importlib.util import find_spec

from transfervae.errors import MissingExtraError

if find_spec("pytorch_lightning") is None:
    raise MissingExtraError("Training", "train")

from transfervae.training._initial import read_model_options
from transfervae.training.comparison import Comparison, Row, compare
from transfervae.training.engine import is_first_process
from transfervae.training.held_out import held_out_images, history_of
from transfervae.training.loggers import LOGGERS
from transfervae.training.module import VAEModule
from transfervae.training.options import DataOptions, EngineOptions, OptimizerOptions
from transfervae.training.recipes import RECIPES, choose_recipe, read_recipe
from transfervae.training.run import TrainResult, cache_features, train

__all__ = [
    "LOGGERS",
    "RECIPES",
    "Comparison",
    "DataOptions",
    "EngineOptions",
    "OptimizerOptions",
    "Row",
    "TrainResult",
    "VAEModule",
    "cache_features",
    "choose_recipe",
    "compare",
    "held_out_images",
    "history_of",
    "is_first_process",
    "read_model_options",
    "read_recipe",
    "train",
]
