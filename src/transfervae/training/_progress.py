"""What a person sees while a run goes on."""

import time
from typing import Any, cast

import pytorch_lightning as pl
from rich.console import Console
from typing_extensions import override

from transfervae.cache import CachedItem
from transfervae.progress import make_progress
from transfervae.training._run_folder import RunRecorder
from transfervae.training.module import Batch, VAEModule

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
        self._progress = make_progress(console)
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
    terms = " + ".join(f"{name} {row[f'train/weighted/{name}']:.4f}" for name in _names(row, "train/weighted/"))
    figures = "  ".join(
        f"{name} {_shorten(row[f'val/{name}'])}" for name in _names(row, "val/") if "/" not in name and name != "loss"
    )
    own = "".join(f"  own {name} {row[f'train/own/{name}']:.4f}" for name in _names(row, "train/own/"))
    skipped = f"  {row['train/skipped']:.0f} steps skipped" if row.get("train/skipped") else ""
    return (
        f"epoch {int(row['epoch']):>3}/{epochs}  train {terms}{own}{skipped}  held-out {figures}"
        f"  {row['images_per_second']:.0f} images/s"
    )


def _names(row: dict[str, float], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in row if name.startswith(prefix)]


def _shorten(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.4g}"
