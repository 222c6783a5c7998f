import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.runs import Small
from tests.samples import make_vae
from transfervae.execution import MEMORY_FORMATS, PRECISIONS, Execution, Trial
from transfervae.training import EngineOptions
from transfervae.training import _choose_execution as choose_execution
from transfervae.training._choose_execution import LIGHTNING_NAMES, VARIABLE, ChosenExecution, choose_run_execution
from transfervae.training.engine import make_trainer, quiet_engine

BEST = Execution("bfloat16", "channels_last")


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> list[list[Execution]]:
    """Pretend that each way is twice as fast as the one after it; gives what was measured."""
    measured = []

    def measure(
        _vae: object, *, precisions: tuple[str, ...], memory_formats: tuple[str, ...], **_: object
    ) -> list[Trial]:
        ways = [Execution(precision, memory_format) for precision in precisions for memory_format in memory_formats]
        measured.append(ways)
        return [Trial(way, 100.0 / 2**place) for place, way in enumerate(ways)]

    monkeypatch.setattr(choose_execution, "measure_executions", measure)
    monkeypatch.delenv(VARIABLE, raising=False)
    return measured


def settle(console: Console | None = None, **options: object) -> ChosenExecution:
    engine = EngineOptions(accelerator="cpu", **{"devices": 1, **options})  # type: ignore[arg-type]
    trainer = make_trainer(engine, [])
    return choose_run_execution(
        engine, make_vae("resnet"), trainer, batch_size=2, console=console or Console(quiet=True)
    )


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize(
    ("word", "precision"),
    [("32-true", "float32"), ("32", "float32"), ("bf16-mixed", "bfloat16"), ("bf16", "bfloat16")],
)
def test_what_is_given_is_taken_and_nothing_measured(
    word: str, precision: str, memory_format: str, speeds: list[list[Execution]]
) -> None:
    settled = settle(precision=word, memory_format=memory_format)
    assert settled.execution == (precision, memory_format)
    assert settled.engine.precision == LIGHTNING_NAMES[precision]
    assert settled.engine.memory_format == memory_format
    assert not speeds


def test_only_what_is_open_is_measured(speeds: list[list[Execution]]) -> None:
    assert settle().execution == BEST
    assert settle(precision="32").execution == ("float32", "channels_last")
    assert settle(memory_format="contiguous").execution == ("bfloat16", "contiguous")
    everything = [Execution(precision, memory_format) for precision in PRECISIONS for memory_format in MEMORY_FORMATS]
    assert speeds == [everything, everything[2:], everything[1::2]]


@pytest.mark.usefixtures("speeds")
def test_settled_engines_hold_no_auto_and_settle_to_themselves() -> None:
    settled = settle()
    assert (settled.engine.precision, settled.engine.memory_format) == ("bf16-mixed", "channels_last")
    again = settle(precision=settled.engine.precision, memory_format=settled.engine.memory_format)
    assert again.execution == settled.execution


@pytest.mark.usefixtures("speeds")
def test_what_was_measured_is_said() -> None:
    screen = Console(file=io.StringIO(), width=300)
    settle(screen)
    assert isinstance(screen.file, io.StringIO)
    said = screen.file.getvalue()
    assert "runs in bfloat16 and channels_last memory, by a short measurement" in said
    assert "bfloat16 channels_last 100, bfloat16 contiguous 50, float32 channels_last 25, float32 contiguous 12" in said


def test_other_precisions_are_the_engine_s_own_business(speeds: list[list[Execution]]) -> None:
    for word in ("64-true", "bf16-true"):
        settled = settle(precision=word)
        assert settled.engine.precision == word
        assert settled.execution == ("float32", "contiguous")
        assert settle(precision=word, memory_format="channels_last").execution.memory_format == "channels_last"
    assert not speeds


def test_half_precision_on_a_processor_is_said_to_be_another(speeds: list[list[Execution]]) -> None:
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU. Using `precision='bf16-mixed'` instead"):
        settled = settle(precision="16-mixed")
    assert settled.execution == ("float32", "contiguous")
    assert not speeds


def test_processes_that_work_together_run_the_same_way(
    speeds: list[list[Execution]], monkeypatch: pytest.MonkeyPatch
) -> None:
    together: Any = {"devices": 2, "strategy": "ddp"}
    assert settle(**together).execution == BEST
    assert len(speeds) == 1
    monkeypatch.setenv("LOCAL_RANK", "1")  # as in the other process, which finds what the first has left for it
    assert settle(**together).execution == BEST
    assert settle(**together, memory_format="contiguous").execution == ("float32", "contiguous")
    assert settle(**together, precision="32-true").execution.precision == "float32"
    assert (
        settle(**together, precision="32-true", memory_format="channels_last").execution.memory_format
        == "channels_last"
    )
    assert len(speeds) == 1


@pytest.mark.parametrize("told", ["", "warp", "float64,contiguous", "float32,spiral", "bfloat16"])
def test_processes_that_cannot_agree_take_what_is_plain(
    told: str, speeds: list[list[Execution]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv(VARIABLE, told)
    screen = Console(file=io.StringIO(), width=300)
    assert settle(screen, devices=2, strategy="ddp").execution == ("float32", "contiguous")
    assert isinstance(screen.file, io.StringIO)
    assert "--engine.precision and --engine.memory-format choose" in screen.file.getvalue()
    assert not speeds


def test_one_process_alone_measures_for_itself(speeds: list[list[Execution]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "float32,contiguous")
    assert settle().execution == BEST
    assert len(speeds) == 1


def test_a_resumed_run_keeps_what_was_measured(speeds: list[list[Execution]], tmp_path: Path) -> None:
    options = Small(latent_dim=4, faces=12, epochs=1)
    options.train(tmp_path, engine={"accelerator": "cpu", "devices": 1})
    engine = json.loads((tmp_path / "config.json").read_text())["engine"]
    assert (engine["precision"], engine["memory_format"]) == ("bf16-mixed", "channels_last")
    assert "auto" not in (engine["precision"], engine["memory_format"])
    screen = Console(file=io.StringIO(), width=300)
    with quiet_engine():
        options.train(tmp_path, resume=True, engine=None, console=screen)
    assert len(speeds) == 1
    assert json.loads((tmp_path / "config.json").read_text())["engine"] == engine
