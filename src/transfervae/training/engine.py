"""PyTorch Lightning's trainer, as runs and builds of a cache use it."""

import logging
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from transfervae.errors import CheckpointError, InvalidOptionError, TransferVAEError
from transfervae.training.options import AUTO, OWN_PRECISIONS, EngineOptions

for _name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)

LIGHTNING_REMARKS = (
    r".*does not have many workers.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*Found \d+ module\(s\) in eval mode.*",
    r".*recommended to use `self.log\('.*', ..., sync_dist=True\)`.*",
    r".*``compute`` method of metric .* was called before the ``update`` method.*",
    r".*is smaller than the logging interval.*",
)
"""Remarks of the engine on what is so by design; nothing a user could act on."""


def make_trainer(
    engine: EngineOptions,
    callbacks: Sequence[pl.Callback],
    *,
    max_epochs: int = 1,
    plugins: Sequence[Any] = (),
    loggers: Sequence[Logger] = (),
    has_own_optimizers: bool = False,
) -> pl.Trainer:
    """Make a trainer that writes nothing of its own accord.

    Args:
        engine: The options.
        callbacks: The callbacks.
        max_epochs: Length of a run.
        plugins: How checkpoints are written; none are if there is no plugin.
        loggers: Where figures are logged.
        has_own_optimizers: Whether terms have optimisers of their own, so that a backward pass leaves some parameters
            out, which several processes have to be told.

    Raises:
        InvalidOptionError: If the engine cannot do what it is asked to.
    """
    precision: Any = "32-true" if engine.precision in OWN_PRECISIONS else engine.precision
    strategy = engine.strategy
    if has_own_optimizers and strategy in {"ddp", AUTO} and _has_several(engine):
        strategy = "ddp_find_unused_parameters_true"
    with _refusals():
        return pl.Trainer(
            accelerator=engine.accelerator,
            devices=engine.devices,
            num_nodes=engine.num_nodes,
            strategy=strategy,
            precision=precision,
            max_epochs=max_epochs,
            logger=list(loggers) or False,
            callbacks=list(callbacks),
            plugins=list(plugins),
            enable_checkpointing=bool(plugins),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )


def make_fabric(engine: EngineOptions) -> Fabric:
    """Make what starts the processes of a trainer with the same options, for work other than training.

    Args:
        engine: The options; the precision is the work's own matter.

    Raises:
        InvalidOptionError: If the engine cannot do what it is asked to.
    """
    with _refusals():
        return Fabric(
            accelerator=engine.accelerator,
            devices=engine.devices,
            num_nodes=engine.num_nodes,
            strategy=engine.strategy,
        )


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, TypeError, ImportError, MisconfigurationException) as error:
        raise InvalidOptionError(f"The engine refuses these options: {' '.join(str(error).split())}") from error


def _has_several(engine: EngineOptions) -> bool:
    """Whether a run has several processes, or may have."""
    if engine.num_nodes > 1 or (isinstance(engine.devices, int) and engine.devices > 1):
        return True
    return engine.devices == AUTO and engine.accelerator != "cpu" and torch.cuda.device_count() > 1


@contextmanager
def quiet_engine() -> Iterator[None]:
    """Keep the engine from remarking on what is so by design."""
    with warnings.catch_warnings():
        for remark in LIGHTNING_REMARKS:
            warnings.filterwarnings("ignore", message=remark)
        yield


def run_interruptibly(trainer: pl.Trainer, call: Callable[[], object]) -> None:
    """Run a trainer, and let an interruption by the user through as what it is.

    Raises:
        KeyboardInterrupt: If the user interrupted it.
        CheckpointError: If the checkpoint that it resumes from holds something else than a run's state.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        call()
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, TransferVAEError) or not _comes_from_restoring(error):
            raise
        raise CheckpointError(f"The checkpoint holds no state of this run: {type(error).__name__}: {error}") from error


def _comes_from_restoring(error: Exception) -> bool:
    """Whether an error was raised while the trainer took over the state in a checkpoint."""
    frames = traceback.extract_tb(error.__traceback__)
    return any("checkpoint_connector" in frame.filename and "restore" in frame.name for frame in frames)


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes, of those that work together."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0
