"""How the benchmark and its workers talk: one line of JSON each way.

Each contender is a process of its own, so that its peak memory is its own, that it may run under another interpreter,
and that the parent can time all of them in turn. A worker says what it can run, then answers `{"run": stage, "steps":
n}` with the seconds that n steps took, until its input ends. Needs nothing but Python's own library.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from memory import peak_bytes, reset_peak

HERE = Path(__file__).parent
SAID_LAST = 400
"""So many characters of a failed worker's last line are repeated."""


@dataclass(frozen=True)
class Stage:
    """What a worker can time.

    Attributes:
        run: One step.
        images: Images a step.
        flops: Floating-point operations a step, a multiply-add counted as two; None if not counted.
        traffic: Bytes that the operations of a step read and write; None if not counted.
    """

    run: Callable[[], object]
    images: int
    flops: float | None = None
    traffic: float | None = None


class Answer(NamedTuple):
    """One timed run; memory in bytes, None where it cannot be told.

    Attributes:
        seconds: Of all its steps together, from an idle device to an idle device.
        host_peak: Most resident memory of the worker's process.
        device_peak: Most memory of tensors on the accelerator.
    """

    seconds: float
    host_peak: int | None
    device_peak: int | None


@dataclass(frozen=True)
class Device:
    """What a worker needs of its device to time and to weigh a run; the defaults are a processor's."""

    synchronise: Callable[[], object] = lambda: None
    reset_peak: Callable[[], object] = lambda: None
    peak: Callable[[], int | None] = lambda: None


@dataclass(frozen=True)
class Contender:
    """A worker to start.

    Attributes:
        name: Who is measured.
        module: Of this folder, dotted.
        options: What the worker reads with `read_options`.
        case: What is measured; only what has the same case is compared.
        python: The interpreter.
        precision: In which it computes, for the table; what the worker says of itself goes before it.
        layout: Of images and weights, for the table.
        hint: What to install when it does not start; without one its failure ends the benchmark.
    """

    name: str
    module: str
    options: Mapping[str, Any]
    case: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    precision: str = "float32"
    layout: str = "contiguous"
    hint: str | None = None


class WorkerError(RuntimeError):
    """A worker ended before its answer; the message is the last thing it said."""


class Worker:
    """A contender's process, as the parent sees it; a context manager that ends it."""

    def __init__(self, contender: Contender) -> None:
        """Start the process and wait until it is ready.

        Args:
            contender: What to start.

        Raises:
            WorkerError: If it does not get ready.
        """
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(  # noqa: S603 - our own modules
            [contender.python, "-m", contender.module, json.dumps(dict(contender.options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_environment(contender),
        )
        self.hello = self._listen()
        chosen = {key: self.hello[key] for key in ("precision", "layout") if key in self.hello}
        self.contender = replace(contender, **chosen)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """What it can run: images, flops and traffic of a step by the stage's name."""
        stages: dict[str, dict[str, Any]] = self.hello["stages"]
        return stages

    def time(self, stage: str, steps: int) -> Answer:
        """Time so many steps of a stage.

        Raises:
            WorkerError: If the process ends meanwhile.
        """
        assert self._process.stdin is not None  # noqa: S101 - it was opened as a pipe
        try:
            self._process.stdin.write(json.dumps({"run": stage, "steps": steps}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        return Answer(**self._listen())

    def __enter__(self) -> "Worker":  # noqa: PYI034 - as the library writes it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if not self._log.closed:
            self._process.communicate()
            self._log.close()

    def _listen(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - it was opened as a pipe
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        said: dict[str, Any] = json.loads(line)
        return said

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        self._close()
        return (lines or [f"it ended with {self._process.returncode}"])[-1][:SAID_LAST]


def read_options() -> dict[str, Any]:
    """The contender's options, in its own process."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    return options


def serve(stages: Mapping[str, Stage], device: Device | None = None, **about: Any) -> None:
    """Answer the parent until it hangs up.

    Args:
        stages: What can be run, by name.
        device: Where it runs; a processor if None.
        about: What else the parent should know: plain values.
    """
    device = Device() if device is None else device
    answers = _take_stdout()
    figures = ("images", "flops", "traffic")
    described = {name: {key: getattr(stage, key) for key in figures} for name, stage in stages.items()}
    print(json.dumps({"stages": described, **about}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = _time(stages[request["run"]].run, request["steps"], device)
        print(json.dumps(answer._asdict()), file=answers, flush=True)


def _time(run: Callable[[], object], steps: int, device: Device) -> Answer:
    reset_peak()
    device.reset_peak()
    device.synchronise()
    began = time.perf_counter()
    for _ in range(steps):
        run()
    device.synchronise()
    return Answer(time.perf_counter() - began, peak_bytes(), device.peak())


def _take_stdout() -> Any:
    """Keep the pipe to the parent for answers; whatever else a library prints goes to the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _environment(contender: Contender) -> dict[str, str]:
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if str(contender.options.get("device", "cpu")) == "cpu" else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **hidden}
