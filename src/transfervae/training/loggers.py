"""Loggers beside `metrics.csv`: Lightning's own, made for a run's folder."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from transfervae.errors import InvalidOptionError, MissingExtraError, UnknownNameError

LogPicture: TypeAlias = Callable[[Any, str, Path, int], None]


class RunLogger(NamedTuple):
    """A logger, and how it takes pictures.

    Attributes:
        logger: Lightning's.
        write_picture: Takes the logger, a name, a PNG file and the epoch; None if it takes no pictures.
    """

    logger: Logger
    write_picture: LogPicture | None = None

    def log_picture(self, name: str, path: Path, epoch: int) -> None:
        """Log a PNG file, if the logger takes pictures."""
        if self.write_picture is not None:
            self.write_picture(self.logger, name, path, epoch)


def make_logger(given: str | Logger, folder: Path) -> RunLogger:
    """Make a logger for a run's folder; one of Lightning's own is taken as it is.

    Raises:
        UnknownNameError: For a name that is not in `LOGGERS`.
        MissingExtraError: If the logger's package is not installed.
        InvalidOptionError: If it is no logger.
    """
    if isinstance(given, Logger):
        return RunLogger(given)
    if not isinstance(given, str):
        raise InvalidOptionError(f"A logger must be a name or a Lightning Logger, got {type(given).__name__}.")
    if given not in LOGGERS:
        raise UnknownNameError("logger", given, LOGGERS)
    if find_spec(given) is None:
        raise MissingExtraError(f"The logger {given!r}", given)
    return LOGGERS[given](folder)


def _tensorboard(folder: Path) -> RunLogger:
    return RunLogger(TensorBoardLogger(str(folder), name="", version="tensorboard"), _to_tensorboard)


def _to_tensorboard(logger: TensorBoardLogger, name: str, path: Path, epoch: int) -> None:
    logger.experiment.add_image(name, np.asarray(Image.open(path)), epoch, dataformats="HWC")


def _wandb(folder: Path) -> RunLogger:
    return RunLogger(WandbLogger(save_dir=str(folder), name=folder.name, offline=True), _to_wandb)


def _to_wandb(logger: WandbLogger, name: str, path: Path, epoch: int) -> None:  # noqa: ARG001 - wandb counts for itself
    logger.log_image(name, [str(path)])


LOGGERS: Mapping[str, Callable[[Path], RunLogger]] = MappingProxyType({"tensorboard": _tensorboard, "wandb": _wandb})
"""Loggers by name; Weights & Biases writes offline, for `wandb sync`."""
