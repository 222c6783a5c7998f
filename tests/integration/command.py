"""The command line as a user runs it: a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

COMMAND = [sys.executable, "-m", "transfervae"]

TINY_OPTIONS = """
    --backbone timm:test_resnet --weights none --image-size 32 --latent-dim 8 --width 32 --faces 48 --batch-size 8
    --workers 0 --accelerator cpu --devices 1 --precision 32-true --memory-format contiguous
"""
TINY = tuple(TINY_OPTIONS.split())


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


def run(
    *arguments: str | Path, cwd: Path | None = None, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=before,
    )


def start(arguments: Sequence[str | Path]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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
