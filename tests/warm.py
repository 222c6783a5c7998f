"""Processes of their own that need not import what takes seconds: a server has imported it, and forks for each.

They are real processes: they can be killed, have limits of their own, and nothing of them is left behind. Those that
start further processes by their own command line (several ranks) are started the usual way, in `integration.command`.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "torchvision", "timm", "pytorch_lightning", "torchmetrics", "matplotlib.figure"]
)


class Warm:
    """A running process, with the part of `subprocess.Popen` that the tests use.

    Attributes:
        returncode: The exit code, or minus the signal; None until it has been waited for.
    """

    returncode: int | None = None

    def __init__(
        self,
        arguments: Sequence[str | Path],
        environment: Mapping[str, str],
        *,
        cwd: Path | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        """Start a process.

        Args:
            arguments: As `python` takes them: a file, or "-c" or "-m" and what to run, and its arguments.
            environment: Its environment variables.
            cwd: Its working directory.
            before: What to do in it first; must be importable.
        """
        self.arguments = [*map(str, arguments)]
        self._files = [Path(tempfile.mkstemp(prefix="warm")[1]) for _ in range(2)]
        given = (self.arguments, dict(environment), str(cwd or Path.cwd()), before, [*map(str, self._files)])
        self._process = _CONTEXT.Process(target=_main, args=given)
        self._process.start()
        self.pid = self._process.pid or 0

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.exitcode is None

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.is_running():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end; what was printed, and what was printed as errors."""
        self._process.join(timeout)
        self.returncode = self._process.exitcode
        if self.returncode is None:
            raise TimeoutExpired(self.arguments, timeout)
        stdout, stderr = (path.read_text() for path in self._files)
        for path in self._files:
            path.unlink()
        return stdout, stderr


def run_warm(
    *arguments: str | Path,
    environment: Mapping[str, str],
    cwd: Path | None = None,
    before: Callable[[], object] | None = None,
) -> CompletedProcess[str]:
    """Run Python in a process of its own, and wait for it; arguments as of `Warm`."""
    process = Warm(arguments, environment, cwd=cwd, before=before)
    stdout, stderr = process.communicate()
    return CompletedProcess(process.arguments, process.returncode or 0, stdout, stderr)


def make_warnings_errors() -> None:
    """As `python -W error`."""
    warnings.simplefilter("error")


def set_shard_bytes(count: int) -> None:
    """Set the size of the shards of feature caches."""
    from transfervae.cache import manifest

    manifest.SHARD_BYTES = count


def _main(
    arguments: list[str], environment: dict[str, str], cwd: str, before: Callable[[], object] | None, files: list[str]
) -> None:
    for number, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # the platform's own for what it starts itself
    if "OMP_NUM_THREADS" in environment:  # torch has read it when it was imported
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:] = [path for path in (cwd, *environment.get("PYTHONPATH", "").split(os.pathsep)) if path] + sys.path
    if before is not None:
        before()
    kind, *rest = arguments
    if kind == "-c":
        sys.argv = [kind, *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")
