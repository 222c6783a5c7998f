"""What a large data set costs: memory of training from caches of several sizes, and a whole run of the command line.

    python benchmarks/scale.py --work /large/disk/scale --gigabytes 1 5 20 --faces 200000

Caches are in the real format, with random images and features. The run is that of a user: an epoch without a cache,
then the cache, then epochs with it. What is done is kept in --work, so that a run which was stopped goes on: caches
where they were, everything else part by part.
"""

import argparse
import csv
import json
import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from memory import disk_bytes, own_bytes, tree_bytes
from ours import build_random_cache
from protocol import Contender, Worker

from transfervae.cache._shards import FILES, shard_file
from transfervae.cache.manifest import SHARD_BYTES, Manifest

SCHEMA = 1
RESULTS = Path(__file__).parent / "results" / "scale.json"
STAGE = "train (cached)"
IMAGE_SIZE = 128
BATCH = 16
FEATURE_SHAPE = (512, 4, 4)
ROW_BYTES = 3 * IMAGE_SIZE**2 + 2 * 512 * 4 * 4
"""An image, and VGG19's features of it in float16."""

BUILT_SHARDS = 15
"""So many shards are computed, about 1 GB; larger caches are made of copies of them."""

WINDOW = 2**30
CHUNK = 50
"""Steps that are timed together."""

KEPT = 200
"""So many samples of memory are kept of a part."""


def main() -> None:
    """Do what is not done yet, and write the results after each part."""
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    state = State(arguments.work / "state.json", arguments.out)
    for gigabytes in arguments.gigabytes:
        state.once(f"memory {gigabytes:g} GB", partial(measure_set, gigabytes, arguments))
    if arguments.faces:
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "live epoch": lambda: run_training(arguments, "live", ["--engine.cache", "off", "--epochs", "1"]),
            "cache": lambda: run_cache(arguments),
            "cached epochs": lambda: run_training(
                arguments,
                "cached",
                ["--engine.cache", str(arguments.work / "features"), "--epochs", str(arguments.epochs)],
            ),
        }
        for name, run in runs.items():
            state.once(f"{name} of {arguments.faces} faces", run)


class State:
    """Parts that are done, on disk."""

    def __init__(self, path: Path, out: Path) -> None:
        """Read what an earlier run has left.

        Args:
            path: Of the state.
            out: The results, in which the machine is described too.
        """
        self._path = path
        self._out = out
        self._parts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def once(self, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Run a part that is not done."""
        if name in self._parts:
            print(f"{name}: done before", flush=True)
        else:
            print(f"{name}: begun", flush=True)
            self._parts[name] = run()
            print(f"{name}: {summary(self._parts[name])}", flush=True)
            self._path.write_text(json.dumps(self._parts))
        machine = describe_machine(torch.device("cpu"))
        report = {"schema": SCHEMA, "machine": machine, "parts": self._parts}
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(report, indent=1) + "\n")


def measure_set(gigabytes: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train from a cache of so many gigabytes, and watch the memory."""
    shards = max(1, round(gigabytes * 1e9 / SHARD_BYTES))
    rows = shards * SHARD_BYTES // ROW_BYTES
    folder = arguments.work / f"cache-{rows}"
    base = arguments.work / "cache-base"
    built = min(shards, BUILT_SHARDS) * SHARD_BYTES // ROW_BYTES
    build = multiprocessing.get_context("spawn").Process(
        target=build_random_cache, args=(base, built, IMAGE_SIZE, FEATURE_SHAPE)
    )
    build.start()
    build.join()
    if build.exitcode:
        sys.exit(f"the cache of {gigabytes:g} GB was not built; see above")
    grow(base, folder, shards)
    shutil.rmtree(base)
    with Worker(Contender("transfervae", "ours", worker_options(folder, rows, arguments.precision))) as worker:
        chunk = min(CHUNK, arguments.steps)
        worker.time(STAGE, chunk)
        with watching(worker.pid) as samples:
            times = [worker.time(STAGE, chunk).seconds for _ in range(arguments.steps // chunk)]
    result = {"gigabytes": gigabytes, "rows": rows, "bytes": disk_bytes(folder)}
    result |= {"images_per_second": BATCH * chunk * len(times) / sum(times), "steps": chunk * len(times)}
    if not arguments.keep:
        shutil.rmtree(folder)
    return {**result, **peaks(samples), "window_bytes": WINDOW}


def grow(base: Path, folder: Path, shards: int) -> None:
    """Make a larger cache of copies of a small one's shards: reading it costs what reading any other does."""
    manifest = Manifest.read(base)
    listed = manifest.shards or ()
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        for kind in FILES:
            shutil.copyfile(shard_file(base, shard % len(listed), kind), shard_file(folder, shard, kind))
    repeated = [listed[shard % len(listed)] for shard in range(shards)]
    replace(manifest, rows=shards * manifest.rows_per_shard, shards=repeated).write(folder)


def worker_options(folder: Path, rows: int, precision: str) -> dict[str, Any]:
    """Of a worker that trains from a cache."""
    return {
        "device": "cpu",
        "threads": None,
        "backbone": "vgg19",
        "image_size": IMAGE_SIZE,
        "batch": BATCH,
        "latent_dim": 128,
        "stages": [STAGE],
        "rows": rows,
        "cache": str(folder),
        "window": WINDOW,
        "workers": 0,
        "precision": precision,
        "layout": "auto",
        "compile": False,
    }


def run_training(arguments: argparse.Namespace, name: str, options: Sequence[str]) -> dict[str, Any]:
    """Run `transfervae train`, and give images/s by epoch."""
    folder = arguments.work / name
    shutil.rmtree(folder, ignore_errors=True)
    model = ["--decoder.width", str(arguments.width), "--out", str(folder)]
    result = run_command(["train", *common(arguments), *model, *options], arguments.work / f"{name}.log")
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    speeds = [float(row["images_per_second"]) for row in rows]
    return {**result, "images_per_second": speeds, "rmse": [float(row["val/rmse"]) for row in rows]}


def run_cache(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `transfervae cache`; one that was stopped goes on."""
    folder = arguments.work / "features"
    result = run_command(["cache", *common(arguments), "--out", str(folder)], arguments.work / "cache.log")
    speed = arguments.faces / result["seconds"]
    return {**result, "disk_bytes": disk_bytes(folder), "images_per_second": [speed]}


def common(arguments: argparse.Namespace) -> list[str]:
    """What all commands are told."""
    options = {
        "dataset.faces": arguments.faces,
        "image-size": arguments.image_size,
        "dataset.batch-size": arguments.batch_size,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*words, "--backbone", arguments.backbone, "--backbone.weights", arguments.weights]


def run_command(words: Sequence[str], log: Path) -> dict[str, Any]:
    """Run the command line, and watch its memory.

    Raises:
        SystemExit: If it fails; the log is named.
    """
    command = [sys.executable, "-m", "transfervae", *words]
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603 - our own command
        with watching(process.pid) as samples:
            process.wait()
    if process.returncode:
        sys.exit(f"transfervae {words[0]} ended with {process.returncode}; see {log}")
    shown = [Path(word).name if Path(word).is_absolute() else word for word in words]
    return {"command": " ".join(["transfervae", *shown]), "seconds": time.monotonic() - began, **peaks(samples)}


@contextmanager
def watching(pid: int, *, every: float = 0.5) -> Iterator[list[tuple[float, int, int]]]:
    """Sample the memory of a process and all below it: seconds, all of it, and without pages of files."""
    stop = threading.Event()
    began = time.monotonic()
    samples: list[tuple[float, int, int]] = []

    def watch() -> None:
        while not stop.wait(every):
            samples.append((time.monotonic() - began, tree_bytes(pid), own_bytes(pid)))

    samples.append((0.0, tree_bytes(pid), own_bytes(pid)))
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def peaks(samples: Sequence[tuple[float, int, int]]) -> dict[str, Any]:
    """The most that was seen, and its course."""
    step = -(-len(samples) // KEPT)
    return {
        "peak_bytes": max(resident for _, resident, _ in samples),
        "peak_own_bytes": max(own for _, _, own in samples),
        "samples": [[round(seconds, 1), resident, own] for seconds, resident, own in samples[::step]],
    }


def summary(part: dict[str, Any]) -> str:
    """A part's figures in a line."""
    speeds = part["images_per_second"]
    speeds = ", ".join(f"{speed:.0f}" for speed in (speeds if isinstance(speeds, list) else [speeds]))
    peak, own = part["peak_bytes"] / 2**20, part["peak_own_bytes"] / 2**20
    return f"{speeds} images/s, at most {peak:.0f} MiB, {own:.0f} MiB without mapped files"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder on a disk with room for the largest cache")
    parser.add_argument(
        "--gigabytes", nargs="*", type=float, default=[1, 5, 20], help="sizes of caches, in whole shards of 64 MiB"
    )
    parser.add_argument("--precision", default="auto", help="of training on each cache: auto, float32 or bfloat16")
    parser.add_argument("--steps", type=int, default=2500, help="training steps on each cache")
    parser.add_argument("--keep", action="store_true", help="leave the caches there")
    parser.add_argument("--faces", type=int, default=200_000, help="drawn faces of the whole run; 0 for no run")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32, help="of the decoder")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3, help="epochs with the cache")
    parser.add_argument("--backbone", default="packaged")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
