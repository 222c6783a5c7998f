"""The library as it is used: `train` with the recipe for latent vectors, features included."""

import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

import transfervae as tv
from learners.common import Clock, Task, read_task
from transfervae.training import train


class Timer(pl.Callback):
    """Notes when each epoch ended, the run's own figures of held-out images included."""

    def __init__(self, task: Task, clock: Clock) -> None:
        """Take the task and its clock."""
        self.task = task
        self.clock = clock
        self.seconds: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's names
        """Note the time, figures of the epoch included."""
        self.seconds.append(self.clock.seconds)
        if self.clock.seconds > self.task.limit:
            trainer.should_stop = True


def main() -> None:
    """Learn."""
    task, clock = read_task(), Clock()
    timer, head = Timer(task, clock), tv.Spec("gaussian", latent_dim=task.latent_dim)
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            {"backbone": "packaged", "image_size": task.image_size, "head": head},
            task.training,
            val_data=task.held,
            out=Path(folder) / "run",
            epochs=task.epochs,
            metrics=("psnr",),
            dataset={"batch_size": task.batch},
            callbacks=[timer],
            seed=task.seed,
        )
    for seconds, row in zip(timer.seconds, result.rows, strict=True):
        clock.say(seconds, row["val/psnr"])


if __name__ == "__main__":
    main()
