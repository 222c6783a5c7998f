"""Trainings that are killed (`kill -9`) at random moments, resumed, and compared with one that was not.

`python -m tests.robustness.kills --kills 50` prints what came of them.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from tests.runs import Small
from transfervae.files import read_tensors
from transfervae.training import _run_folder, run

SMALL = Small(faces=12, epochs=3, width=8)
DRAWN = ((run, "write_architecture"), (_run_folder, "write_history"))
"""Pictures that matplotlib draws: they take most of a short run's time, and are left out."""

COMPARED = ("model/config.json", "model/model.safetensors", "reconstructions.png", "samples.png", "val_images.txt")


def kill_runs(kills: int, seed: int, root: Path) -> tuple[Counter[str], list[str]]:
    """Kill runs once each, let them finish, and compare.

    Args:
        kills: How many.
        seed: Of the moments.
        root: An empty folder to work in.

    Returns:
        When the kills struck, counted, and faults in words.
    """
    for module, name in DRAWN:
        setattr(module, name, lambda *_: None)
    whole = root / "whole"
    finish(start(whole))
    began = time.monotonic()
    finish(start(root / "timed"))
    seconds = time.monotonic() - began
    draw = random.Random(seed)
    moments: Counter[str] = Counter()
    faults = []
    for number in range(kills):
        folder, delay = root / f"run{number}", draw.uniform(0, seconds)
        process = start(folder)
        if number % 5:  # most of a short run lies before its configuration is written
            while not (folder / "config.json").exists():
                time.sleep(0.001)
            delay *= draw.random()
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        moments[moment_of(folder) if os.WIFSIGNALED(status) else "after the end"] += 1
        code = finish(start(folder))
        words = f"kill {number} of seed {seed}, after {delay:.3f} s"
        if code:
            faults.append(f"{words}: resuming ended with {code}")
        else:
            faults += [f"{words}: {name} differs" for name in differences(whole, folder)]
    return moments, faults


def start(folder: Path) -> int:
    """Begin or resume a run in a process of its own, which has all that is imported; the process."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SMALL.train(folder, resume=(folder / "config.json").exists())
        code = 0
    except Exception as error:  # noqa: BLE001 - it is reported by the exit code
        print(f"{folder.name}: {type(error).__name__}: {error}", flush=True)
    os._exit(code)


def finish(process: int) -> int:
    """Wait for a process; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def moment_of(folder: Path) -> str:
    """How far a killed run had come."""
    if not (folder / "config.json").exists():
        return "before the configuration"
    if not (folder / "metrics.csv").exists():
        return "before the first epoch's end"
    rows = len((folder / "metrics.csv").read_text().splitlines()) - 1
    return f"after {rows} epochs" if rows < SMALL.epochs else "after the last epoch"


def differences(whole: Path, other: Path) -> list[str]:
    """Names of files that are not the same."""
    names = [name for name in COMPARED if (whole / name).read_bytes() != (other / name).read_bytes()]
    rows = [
        [line.rpartition(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]  # the last is the speed
        for folder in (whole, other)
    ]
    one, two = (read_tensors(folder / "checkpoints" / "last.safetensors").tensors for folder in (whole, other))
    if one.keys() != two.keys() or not all(value.equal(two[name]) for name, value in one.items()):
        names.append("checkpoints/last.safetensors")
    leftovers = [str(path.relative_to(other)) for path in other.rglob(".*.tmp")]
    return [*names, *(["metrics.csv"] if rows[0] != rows[1] else []), *leftovers]


def main() -> None:
    """Kill runs, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        moments, faults = kill_runs(options.kills, options.seed, Path(folder))
    for moment, count in sorted(moments.items()):
        print(f"{moment:30} {count:4}")
    print(f"{options.kills} kills in {time.monotonic() - began:.0f} s, {len(faults)} faults")
    print(*faults, sep="\n")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
