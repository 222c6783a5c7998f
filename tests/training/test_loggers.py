from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.runs import Small
from transfervae.errors import InvalidOptionError, MissingExtraError, UnknownNameError
from transfervae.training import loggers
from transfervae.training.loggers import make_logger


def test_tensorboard_gets_every_figure_and_the_picture(tmp_path: Path) -> None:
    result = Small(faces=20).train(tmp_path, loggers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    figures = {name for name in result.rows[0] if name.startswith(("train/", "val/"))}
    assert figures <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("val/psnr")] == pytest.approx(
        [row["val/psnr"] for row in result.rows]
    )
    assert events.Tags()["images"] == ["reconstructions"]


def test_a_logger_of_lightning_s_is_taken_as_it_is(tmp_path: Path) -> None:
    Small(faces=20, epochs=1).train(tmp_path / "run", loggers=(CSVLogger(str(tmp_path / "csv"), name="", version="0"),))
    assert "val/psnr" in (tmp_path / "csv" / "0" / "metrics.csv").read_text()


@pytest.mark.usefixtures("without_shape_checks")
def test_what_is_no_logger_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tensorboard'"):
        make_logger("tensorbord", tmp_path)
    with pytest.raises(InvalidOptionError, match="Lightning Logger, got int"):
        make_logger(5, tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"transfervae\[wandb\]"):
        make_logger("wandb", tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_and_biases_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    Small(faces=20, epochs=1).train(tmp_path, loggers=("wandb",))
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
