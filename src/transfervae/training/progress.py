"""What a person sees while a run goes on."""

import time
from typing import Any, cast

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import override

from transfervae.cache import CachedItem
from transfervae.training.module import Batch, VAEModule
from transfervae.training.run_folder import RunRecorder

REFRESH_STEPS = 10


class ProgressDisplay(pl.Callback):
    """A bar with images/s and loss terms on a terminal, and a line an epoch anywhere."""

    def __init__(self, console: Console, recorder: RunRecorder) -> None:
        """Make a display.

        Args:
            console: Where to print.
            recorder: Whose rows are printed after each epoch; it must come earlier in the list of callbacks.
        """
        self._recorder = recorder
        self._began = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", figures="", visible=False)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._began = time.monotonic()
            description = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            total = int(trainer.num_training_batches)
            self._progress.start()
            self._progress.reset(self._task, description=description, total=total, visible=True, figures="")

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        step = batch_idx + 1
        if step % REFRESH_STEPS and step != trainer.num_training_batches:
            return
        speed = (
            step
            * len(batch.image if isinstance(batch, CachedItem) else batch)
            * trainer.world_size
            / (time.monotonic() - self._began)
        )
        terms = "  ".join(f"{name} {value:.4g}" for name, value in cast(VAEModule, pl_module).running_terms().items())
        self._progress.update(self._task, completed=step, figures=f"{speed:.0f} images/s  {terms}")

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._progress.stop()
            self._progress.console.print(
                describe_epoch(self._recorder.rows[-1], trainer.max_epochs or 0), soft_wrap=True
            )

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._progress.stop()


def describe_epoch(row: dict[str, float], epochs: int) -> str:
    """One line about one epoch."""
    return (
        f"epoch {int(row['epoch']):>3}/{epochs}"
        f"  train {row['train/reconstruction']:.4f} + {row['weighted_kl']:.4f}"
        f"  held-out RMSE {row['val/rmse']:.4f}  KL {row['val/kl']:.1f} nats"
        f"  active {int(row['val/active_units'])}  {row['images_per_second']:.0f} images/s"
    )
