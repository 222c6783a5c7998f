"""The folder that a run leaves behind."""

import csv
import io
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from torchmetrics import MetricCollection
from typing_extensions import override

from transfervae.errors import CheckpointError, InvalidOptionError, RunFolderError, UnknownNameError
from transfervae.files import CONFIG_FILE, delete_leftovers, held, read_json, write_atomically, write_tensors
from transfervae.objectives import Objective
from transfervae.pictures import write_history, write_reconstructions
from transfervae.shapes import Images
from transfervae.training.loggers import RunLogger
from transfervae.training.module import VAEModule

PICTURES_A_RUN = 5

PLOT_SECONDS = 20.0
"""The history is drawn anew after so many seconds, and at the end: a plot takes as long as an epoch of a small set."""

OBJECTIVE_FILE = "objective.safetensors"
"""What the terms of the objective have learnt, such as a discriminator; for fine-tuning."""

LOG_FOLDERS = ("tensorboard", "wandb")
"""Where loggers write, beside the run's own folders."""


class RunFolder:
    """Names of what is in a run's folder."""

    def __init__(self, root: Path) -> None:
        """Name the files; nothing is made.

        Args:
            root: The folder.
        """
        self.root = root
        self.config = root / CONFIG_FILE
        self.model = root / "model"
        self.objective = root / OBJECTIVE_FILE
        self.checkpoints = root / "checkpoints"
        self.features = root / "features"
        self.last = self.checkpoints / "last.safetensors"
        self.best = self.checkpoints / "best.safetensors"
        self.pictures = root / "reconstructions"
        self.result = root / "result.json"
        self.metrics = root / "metrics.csv"
        self.val_images = root / "val_images.txt"
        self.history = root / "history.png"
        self.reconstructions = root / "reconstructions.png"
        self.samples = root / "samples.png"
        self.architecture = root / "architecture.png"

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder against other trainings; the hold ends with the process, however it ends.

        Raises:
            RunFolderError: If another training holds it.
            FileWriteError: If the folder cannot be made.
        """
        return held(self.root, RunFolderError(f"Another training is writing to {str(self.root)!r}."))

    def check_free(self) -> None:
        """Make sure that the folder holds no run that got past its first epoch.

        Raises:
            RunFolderError: If it does, or is no folder.
        """
        if self.root.exists() and not self.root.is_dir():
            raise RunFolderError(f"{str(self.root)!r} is a file, not a folder.")
        self.check_folders()
        is_run = self.begun_id() is not None and (self.last.exists() or self.model.exists())
        if not is_run:
            self._check_foreign()
        if is_run or self.last.exists() or self.model.exists():
            raise RunFolderError(
                f"{str(self.root)!r} holds another run; continue it with --resume, or choose another folder."
            )

    def check_folders(self) -> None:
        """Make sure that what the run writes and deletes lies in its own folder.

        Raises:
            RunFolderError: If a folder in it is a link, or a file.
        """
        logs = (self.root / name for name in LOG_FOLDERS)
        for folder in (self.model, self.checkpoints, self.features, self.pictures, *logs):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                what = "a link" if folder.is_symlink() else "a file"
                raise RunFolderError(
                    f"{str(folder)!r} is {what}, and a run needs a folder there; choose another folder with --out."
                )

    def _check_foreign(self) -> None:
        """Make sure that only files are replaced that a run writes before its first epoch."""
        written_at_once = (self.config, self.val_images, self.architecture)
        files = (self.metrics, self.result, self.history, self.reconstructions, self.samples, self.objective)
        found = [path for path in (*files, *(() if self.begun_id() else written_at_once)) if os.path.lexists(path)]
        found += [
            path for path in (self.model, self.checkpoints, self.pictures) if path.is_dir() and any(path.iterdir())
        ]
        if found:
            raise RunFolderError(
                f"{str(self.root)!r} holds {found[0].name!r}, which no run has left there and this one would replace;"
                " choose another folder."
            )

    def begun_id(self) -> str | None:
        """The identity of a run that got nowhere in this folder, which is begun again; None if there is none."""
        if not self.config.is_file() or self.config.is_symlink():
            return None
        with suppress(CheckpointError):
            run_id = read_json(self.config).get("run_id")
            return run_id if isinstance(run_id, str) else None
        return None

    def check_resumable(self) -> None:
        """Make sure that there is a checkpoint to go on from, or that the run did not get past its first epoch.

        Raises:
            RunFolderError: If the checkpoint is gone, so that the run would begin anew and replace what it had trained.
        """
        self.check_folders()
        if self.last.exists():
            return
        rows = len(self.metrics.read_bytes().splitlines()) - 1 if self.metrics.exists() else 0
        if self.result.exists() or rows > 1 or (self.model.exists() and not rows):
            raise RunFolderError(
                f"{str(self.last)!r} is missing, so the run cannot be continued; to train anew, choose another folder."
            )

    def read_config(self) -> dict[str, Any]:
        """The configuration of the run that the folder holds.

        Raises:
            RunFolderError: If it holds none.
            CheckpointError: If its configuration is damaged.
        """
        if not self.config.exists():
            raise RunFolderError(f"There is no run to resume in {str(self.root)!r}.")
        config = read_json(self.config)
        kinds = {"epochs": int, "dataset": dict, "optimizer": dict, "engine": dict, "objective": dict, "metrics": list}
        wrong = [name for name, kind in kinds.items() if not isinstance(config.get(name), kind)]
        if wrong:
            raise CheckpointError(f"{str(self.config)!r} was edited or damaged: {wrong[0]} is not what a run writes.")
        return config

    def check_images(self, identity: Mapping[str, Any]) -> None:
        """Make sure that a run's images are those that it began with.

        Raises:
            RunFolderError: If not.
        """
        if self.read_config().get("images") != identity:
            raise RunFolderError(f"The images are not those that the run in {str(self.root)!r} began with.")

    def read_history(self) -> list[dict[str, float]]:
        """The figures by epoch; none if no epoch has ended.

        Raises:
            CheckpointError: If the file is damaged.
        """
        if not self.metrics.exists():
            return []
        try:
            with self.metrics.open(newline="") as file:
                return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        except (ValueError, TypeError, csv.Error) as error:
            raise CheckpointError(f"{str(self.metrics)!r} is damaged: {error}") from error

    def clean(self) -> None:
        """Delete what writes that were cut off have left aside."""
        for folder in (self.root, self.model, self.checkpoints, self.pictures):
            delete_leftovers(folder)


class Monitor:
    """The figure that tells which epoch is the best.

    Attributes:
        name: Column of `metrics.csv`, such as "val/loss" or "val/psnr".
        mode: "min" or "max".
    """

    def __init__(self, name: str, mode: str) -> None:
        """Name a figure.

        Args:
            name: Column of `metrics.csv`.
            mode: "min" or "max".
        """
        self.name = name
        self.mode = mode

    def best(self, rows: Sequence[dict[str, float]]) -> dict[str, float]:
        """The best of several epochs; the first of those that are equally good."""
        sign = 1 if self.mode == "min" else -1
        return min(rows, key=lambda row: sign * row[self.name])


class RunRecorder(pl.Callback):
    """Writes metrics, pictures and the best model after every epoch, and gives the figures to loggers and callbacks.

    Its rows are part of the checkpoint, so that a resumed run neither loses nor repeats one.

    Attributes:
        rows: One mapping per epoch.
        when_training: Called when training begins: a resumed run has then taken over its state.
    """

    when_training: Callable[[], object] | None = None

    def __init__(
        self,
        folder: RunFolder,
        examples: Images,
        *,
        epochs: int,
        monitor: Monitor,
        loggers: Sequence[RunLogger] = (),
    ) -> None:
        """Make a recorder.

        Args:
            folder: Where to write.
            examples: Held-out images to reconstruct, `[b, 3, h, w]` in [0, 1].
            epochs: Length of the run.
            monitor: What tells the best epoch.
            loggers: Those that get pictures too.
        """
        self.rows: list[dict[str, float]] = []
        self._folder = folder
        self._examples = examples
        self._monitor = monitor
        self._loggers = loggers
        self._picture_every = max(1, epochs // PICTURES_A_RUN)
        self._began = 0.0
        self._seconds = 0.0
        self._plotted = time.monotonic()

    @property
    def best(self) -> dict[str, float]:
        """The best epoch: the one that `model/` holds."""
        return self._monitor.best(self.rows)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        check_rows(checkpoint["callbacks"][self.state_key]["rows"], self._monitor.name)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.when_training is not None:
            self.when_training()

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.monotonic()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds = time.monotonic() - self._began

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = cast(VAEModule, pl_module)
        cast(Any, trainer).datamodule.check_cache(module.vae.backbone)  # on every process, so that all of them stop
        figures = module.epoch_figures()
        # Already the same on every process; and sync_dist would average them once more.
        module.log_dict(figures, rank_zero_only=False, sync_dist=False)
        images = len(trainer.train_dataloader.sampler) * trainer.world_size  # type: ignore[union-attr]
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, **figures}
        row |= {f"weight/{name}": weight for name, weight in module.weights.items()}
        row["images_per_second"] = images / max(self._seconds, 1e-9)
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write(module, int(row["epoch"]))

    def _write(self, module: VAEModule, epoch: int) -> None:
        write_atomically(self._folder.metrics, _as_csv(self.rows))
        if time.monotonic() - self._plotted > PLOT_SECONDS:
            write_history(self._folder.history, self.rows)
            self._plotted = time.monotonic()
        with module.evaluated_weights():
            if self.best is self.rows[-1]:
                save_best(module, self._folder)
            if epoch % self._picture_every and epoch != 1:
                return
            path = self._folder.pictures / f"epoch_{epoch:03d}.png"
            write_reconstructions(path, module.vae, self._examples)
        for logger in self._loggers:
            logger.log_picture("reconstructions", path, epoch)


def save_best(module: VAEModule, folder: RunFolder) -> None:
    """Write the model, and beside it what its objective has learnt, if anything."""
    module.vae.save_pretrained(folder.model)
    learnt = module.objective.state_dict()
    if learnt:
        write_tensors(folder.objective, learnt)


def check_rows(rows: Any, monitor: str) -> list[dict[str, float]]:
    """Figures by epoch as a checkpoint holds them.

    Raises:
        CheckpointError: If they are not what a run writes: one mapping of the same numbers per epoch, counted from 1.
    """
    is_fine = (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows)
        and all(isinstance(value, int | float) for row in rows for value in row.values())
        and all(math.isfinite(row.get(monitor, math.nan)) for row in rows)
        and [row.get("epoch") for row in rows] == list(range(1, len(rows) + 1))
    )
    if not is_fine:
        raise CheckpointError("The checkpoint's figures are not those that a run writes.")
    return list(rows)


def choose_monitor(name: str | None, objective: Objective, metrics: MetricCollection, patience: int | None) -> Monitor:
    """The monitor of a name; without one the loss, or the last epoch where a term such as a discriminator learns too.

    Raises:
        TransferVAEError: As `monitor_for`.
        InvalidOptionError: If a run is to end early, and every epoch counts as better than all before.
    """
    fallback = "epoch" if objective.terms_with_optimizer() else "loss"
    monitor = monitor_for(fallback if name is None else name, metrics)
    if patience is not None and monitor.name == "epoch":
        raise InvalidOptionError("patience needs a figure that gets better: give monitor, such as psnr.")
    return monitor


def monitor_for(name: str, metrics: MetricCollection) -> Monitor:
    """The monitor of a name.

    Args:
        name: "loss" for the objective on held-out images, "epoch" for the last epoch, else one of a run's metrics.
        metrics: The run's.

    Raises:
        UnknownNameError: For another name.
        InvalidOptionError: For a metric that does not say whether more is better.
    """
    short = name.removeprefix("val/")
    if short == "loss":
        return Monitor("val/loss", "min")
    if short == "epoch":
        return Monitor("epoch", "max")
    if short not in metrics:
        raise UnknownNameError("figure to monitor", name, ["loss", "epoch", *metrics])
    is_higher_better = metrics[short].higher_is_better
    if is_higher_better is None:
        raise InvalidOptionError(f"The metric {short!r} does not say whether higher is better (higher_is_better).")
    return Monitor(f"val/{short}", "max" if is_higher_better else "min")


def _as_csv(rows: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
