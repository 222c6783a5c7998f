"""A run goes on from its last full epoch, and its model is of the best one, whenever it was killed."""

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

import transfervae as tv
from tests.runs import Small
from transfervae.errors import CheckpointError
from transfervae.files import read_json, read_tensors
from transfervae.training._checkpoint_io import SafetensorsIO

WORSENING = Small(faces=24, epochs=3, learning_rate=0.3)
"""A run whose first epoch is the best."""


class Stop(pl.Callback):
    """Ends a run as a kill would, once an epoch's model is saved and before its checkpoint is."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch + 1 == self.epoch:
            raise KeyboardInterrupt


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


def epochs_in(path: Path) -> int:
    return len(SafetensorsIO().load_checkpoint(path)["callbacks"]["RunRecorder"]["rows"])


def test_epochs_that_are_not_better_are_kept_too(tmp_path: Path) -> None:
    result = WORSENING.train(tmp_path / "run", seed=1)
    assert result.best["epoch"] == 1
    assert epochs_in(tmp_path / "run" / "checkpoints" / "last.safetensors") == 3
    assert epochs_in(tmp_path / "run" / "checkpoints" / "best.safetensors") == 1
    before = rows_of(tmp_path / "run")
    Small(faces=24, epochs=4, learning_rate=0.3).train(tmp_path / "run", seed=1, resume=True)
    assert rows_of(tmp_path / "run")[:3] == before


@pytest.mark.parametrize("seed", [10])
def test_the_model_is_that_of_the_best_epoch_after_a_kill_within_an_epoch_s_end(seed: int, tmp_path: Path) -> None:
    small = Small(faces=24, epochs=3, learning_rate=0.2)
    with pytest.raises(KeyboardInterrupt):
        small.train(tmp_path, seed=seed, callbacks=[Stop(3)])
    longer = Small(faces=24, epochs=6, learning_rate=0.2).train(tmp_path, seed=seed, resume=True)
    best = min(longer.rows, key=lambda row: row["val/loss"])
    assert read_json(tmp_path / "result.json")["epoch"] == best["epoch"]
    assert longer.best["val/rmse"] == pytest.approx(best["val/rmse"], rel=1e-4)
    weights = read_tensors(tmp_path / "model" / "model.safetensors").tensors
    checkpoint = SafetensorsIO().load_checkpoint(tmp_path / "checkpoints" / "best.safetensors")["state_dict"]
    assert all(checkpoint[name].equal(value) for name, value in weights.items())


def test_a_kill_between_the_two_checkpoints_loses_neither(tmp_path: Path) -> None:
    Small(faces=24, epochs=1).train(tmp_path)
    first = (tmp_path / "checkpoints" / "best.safetensors").read_bytes()
    result = Small(faces=24, epochs=2).train(tmp_path, resume=True)
    assert result.best["epoch"] == 2
    (tmp_path / "checkpoints" / "best.safetensors").write_bytes(first)
    again = Small(faces=24, epochs=2).train(tmp_path, resume=True)
    assert again.best == result.best
    assert epochs_in(tmp_path / "checkpoints" / "best.safetensors") == 2


def test_a_missing_best_checkpoint_is_named(tmp_path: Path) -> None:
    WORSENING.train(tmp_path, seed=1)
    (tmp_path / "checkpoints" / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        Small(faces=24, epochs=4, learning_rate=0.3).train(tmp_path, seed=1, resume=True)


def test_a_save_that_was_killed_does_not_come_back_over_a_model_that_was_copied(tmp_path: Path) -> None:
    from tests.samples import make_backbone, make_vae

    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        make_vae(seed=seed).save_pretrained(tmp_path / name)
    (tmp_path / "a" / "model.safetensors.new").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "a" / file).write_bytes((tmp_path / "c" / file).read_bytes())
    loaded = tv.TransferVAE.from_pretrained(tmp_path / "a", backbone=make_backbone("vgg19")).trainable_state()
    expected = make_vae(seed=2).trainable_state()
    assert all(loaded[name].equal(value) for name, value in expected.items())
