"""The folder that a run leaves behind."""

import csv
import io
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from typing_extensions import override

from transfervae.checkpoint import CONFIG_FILE, held, read_json, write_atomically
from transfervae.errors import RunFolderError
from transfervae.model import TransferVAE
from transfervae.pictures import write_history, write_reconstructions
from transfervae.shapes import Images
from transfervae.training.module import VAEModule

MONITORED = "val/total"
PICTURES_A_RUN = 5


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
        self.checkpoints = root / "checkpoints"
        self.features = root / "features"
        self.last = self.checkpoints / "last.safetensors"
        self.result = root / "result.json"
        self.metrics = root / "metrics.csv"
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
        if self.last.exists() or self.model.exists():
            raise RunFolderError(
                f"{str(self.root)!r} holds another run; continue it with --resume, or choose another folder."
            )

    def read_config(self) -> dict[str, Any]:
        """The configuration of the run that the folder holds.

        Raises:
            RunFolderError: If it holds none.
            CheckpointError: If its configuration is damaged.
        """
        if not self.config.exists():
            raise RunFolderError(f"There is no run to resume in {str(self.root)!r}.")
        return read_json(self.config)

    def clean(self) -> None:
        """Delete what writes that were cut off have left aside."""
        for leftover in self.root.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)


class RunRecorder(pl.Callback):
    """Writes metrics, pictures and the best model after every epoch.

    Its rows are part of the checkpoint, so that a resumed run neither loses nor repeats one.

    Attributes:
        rows: One mapping an epoch.
    """

    def __init__(self, folder: RunFolder, examples: Images, *, epochs: int) -> None:
        """Make a recorder.

        Args:
            folder: Where to write.
            examples: Held-out images to reconstruct, `[b, 3, h, w]` in [0, 1].
            epochs: Length of the run.
        """
        self.rows: list[dict[str, float]] = []
        self._folder = folder
        self._examples = examples
        self._picture_every = max(1, epochs // PICTURES_A_RUN)
        self._began = 0.0
        self._seconds = 0.0

    @property
    def best(self) -> dict[str, float]:
        """The epoch with the lowest held-out objective: the one that `model/` holds."""
        return min(self.rows, key=lambda row: row[MONITORED])

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.monotonic()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds = time.monotonic() - self._began

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = cast(VAEModule, pl_module)
        figures = module.epoch_figures()
        module.log(MONITORED, figures[MONITORED], rank_zero_only=False, sync_dist=False)
        images = len(trainer.train_dataloader.sampler) * trainer.world_size  # type: ignore[union-attr]
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "beta": module.beta, **figures}
        row["weighted_kl"] = figures["train/total"] - figures["train/reconstruction"]
        row["images_per_second"] = images / max(self._seconds, 1e-9)
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write(module.vae, int(row["epoch"]))

    def _write(self, vae: TransferVAE, epoch: int) -> None:
        write_atomically(self._folder.metrics, _as_csv(self.rows))
        write_history(self._folder.history, self.rows)
        if self.best is self.rows[-1]:
            vae.save_pretrained(self._folder.model)
        if epoch % self._picture_every == 0 or epoch == 1:
            path = self._folder.root / "reconstructions" / f"epoch_{epoch:03d}.png"
            write_reconstructions(path, vae, self._examples)


def _as_csv(rows: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
