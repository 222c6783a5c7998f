"""Checkpoints after every epoch, and what a resumed run makes of them."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from typing_extensions import override

from transfervae.errors import CheckpointError
from transfervae.files import write_atomically
from transfervae.training._checkpoint_io import SafetensorsIO
from transfervae.training._run_folder import Monitor, RunFolder, RunRecorder, check_rows, save_best
from transfervae.training.module import VAEModule


class RunCheckpoints(Checkpoint):
    """Writes a checkpoint after every epoch, and keeps that of the best epoch.

    Lightning's own callback writes its last one only in epochs that are better than all before, so that a run that is
    killed would lose the others. The last one is written before the best: whichever of the two a kill leaves behind,
    `restore_best_model` finds the best epoch in one of them.
    """

    def __init__(self, folder: RunFolder, recorder: RunRecorder) -> None:
        """Make a callback; it comes after all that changes a run's state.

        Args:
            folder: Where to write.
            recorder: Knows which epoch is the best.
        """
        self._folder = folder
        self._recorder = recorder

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self._folder.last)
        if trainer.is_global_zero and self._recorder.best is self._recorder.rows[-1]:
            write_atomically(self._folder.best, self._folder.last.read_bytes())


def restore_best_model(module: VAEModule, folder: RunFolder, monitor: Monitor) -> None:
    """Write the best epoch's model again, before a run goes on.

    A process that is killed within an epoch's end may have saved the model of an epoch that is not in the checkpoint
    yet, and that comes out otherwise when it is trained again, for example in another precision.

    Raises:
        CheckpointError: If the best epoch's checkpoint is missing, or of another epoch.
    """
    io = SafetensorsIO()
    last = io.load_checkpoint(folder.last)
    rows = rows_of(last, monitor)
    best = monitor.best(rows)
    source = last if best is rows[-1] else io.load_checkpoint(folder.best)
    if rows_of(source, monitor)[-1]["epoch"] != best["epoch"]:
        raise CheckpointError(
            f"{str(folder.best)!r} is not of epoch {best['epoch']:.0f}, which is the best one in {str(folder.last)!r}."
        )
    if not isinstance(source.get("state_dict"), Mapping):
        raise CheckpointError("The checkpoint holds no state of a model.")
    module.load_state_dict(source["state_dict"])
    with module.evaluated_weights():
        save_best(module, folder)
    if source is last:
        write_atomically(folder.best, folder.last.read_bytes())


def rows_of(checkpoint: Mapping[str, Any], monitor: Monitor) -> list[dict[str, float]]:
    """The figures by epoch that a checkpoint holds.

    Raises:
        CheckpointError: If they are not what a run writes.
    """
    try:
        rows = checkpoint["callbacks"][RunRecorder.__qualname__]["rows"]
    except (KeyError, TypeError) as error:
        raise CheckpointError("The checkpoint holds no figures of a run.") from error
    return check_rows(rows, monitor.name)
