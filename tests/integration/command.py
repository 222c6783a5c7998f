"""The command line as a user runs it."""

import io
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import jaxtyping
import pytest

from tests.warm import Warm, run_warm, set_shard_bytes
from transfervae.__main__ import main
from transfervae.cache.manifest import SHARD_BYTES
from transfervae.cli.app import errors, screen

COMMAND = [sys.executable, "-m", "transfervae"]

MULTIPLE = {"ddp", "--engine.compile"}
"""Words of commands that start processes, or compile what the tests' shape checks would be part of."""

TINY_OPTIONS = """
    --recipe seed --backbone timm:test_resnet --backbone.weights none --image-size 32
    --head.latent-dim 8 --decoder.width 32
    --dataset.faces 48 --dataset.batch-size 8 --dataset.workers 0 --engine.accelerator cpu --engine.devices 1
    --engine.precision 32-true --engine.memory-format contiguous
"""
TINY = tuple(TINY_OPTIONS.split())


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


def run(
    *arguments: str | Path, cwd: Path | None = None, before: Callable[[], object] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command: in this process where nothing asks for one of its own, which spares the imports."""
    command = [*map(str, arguments)]
    if cwd is None and before is None and not MULTIPLE & set(command):
        return run_here(command)
    return run_apart(*arguments, cwd=cwd, before=before)


def run_here(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, as a user does: without shape checks."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        patch.setattr(sys, "argv", ["transfervae", *command])
        for console in (screen, errors):  # they have read the environment when they were imported
            patch.setattr(console, "_width", 200)
        for name, value in environment().items():
            patch.setenv(name, value)
        code: object = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except Exception:  # noqa: BLE001 - a process would print it and end with 1
            traceback.print_exc()
            code = 1
    return subprocess.CompletedProcess(
        [*COMMAND, *command], code if isinstance(code, int) else 1, stdout.getvalue(), stderr.getvalue()
    )


def run_apart(
    *arguments: str | Path, cwd: Path | None = None, before: Callable[[], object] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    if MULTIPLE & {*map(str, arguments)}:  # each rank starts from the command line
        return run_python("-m", "transfervae", *arguments, cwd=cwd)
    return run_warm("-m", "transfervae", *arguments, environment=environment(), cwd=cwd, before=before)


def run_python(
    *arguments: str | Path,
    cwd: Path | None = None,
    path: Sequence[str | Path] = (),
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with further folders to import from."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment() | ({"PYTHONPATH": os.pathsep.join(map(str, path))} if path else {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def start(*arguments: str | Path, shard_bytes: int = SHARD_BYTES) -> Warm:
    """Start a command in a process of its own, with shards of a size."""
    return Warm(["-m", "transfervae", *arguments], environment(), before=partial(set_shard_bytes, shard_bytes))


def assert_succeeds(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stdout + process.stderr
    assert "Warning" not in process.stderr, process.stderr
    return process.stdout


def assert_one_line_error(process: subprocess.CompletedProcess[str], *words: str) -> None:
    assert process.returncode == 2, process.stdout + process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0], lines[0]
