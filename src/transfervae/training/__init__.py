"""Training, with PyTorch Lightning as the engine (extra `train`)."""

from importlib.util import find_spec

from transfervae.errors import MissingExtraError

if find_spec("pytorch_lightning") is None:
    raise MissingExtraError("Training", "train")

from transfervae.training.module import VAEModule  # noqa: E402 - after the check
from transfervae.training.options import EngineOptions, TrainOptions  # noqa: E402
from transfervae.training.run import TrainResult, train  # noqa: E402

__all__ = ["EngineOptions", "TrainOptions", "TrainResult", "VAEModule", "train"]
