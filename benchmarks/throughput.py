"""Throughput of a model's parts and of a training step.

For each backbone, size, batch and precision: images/s (median and spread over the runs), peak memory and FLOP/s of the
frozen backbone, encode, decode, reconstruct and one full training step. Random images and random weights, since speed
depends on neither; warm-up first; on CUDA every timed run ends with a synchronisation.

    python benchmarks/throughput.py --device cuda --out throughput.json
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import transfervae as tv

SCHEMA = 1
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
PACKAGES = ("transfervae", "torch", "torchvision", "timm")
STATM = Path("/proc/self/statm")
SAMPLING_SECONDS = 0.001

Operation = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """What is measured."""

    backbone: str
    image_size: int
    batch: int
    precision: str


@dataclass(frozen=True)
class Measurement:
    """One operation in one case; memory in bytes, null where it cannot be told."""

    backbone: str
    image_size: int
    batch: int
    precision: str
    operation: str
    images_per_second: float
    slowest: float
    fastest: float
    seconds_median: float
    runs: int
    peak_memory: int | None
    flops_per_second: float


def main() -> None:
    """Measure what the arguments ask for, print a table, write JSON."""
    arguments = _parse()
    device = torch.device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cases = [
        Case(*case)
        for case in itertools.product(arguments.backbone, arguments.size, arguments.batch, arguments.precision)
    ]
    results = []
    print(_header(), flush=True)
    for case in cases:
        for measurement in measure_case(case, device, arguments):
            results.append(measurement)
            print(_row(measurement), flush=True)
    if arguments.out:
        report = {"schema": SCHEMA, "machine": describe_machine(device), "results": [asdict(row) for row in results]}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def measure_case(case: Case, device: torch.device, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """Measure all operations of one case."""
    torch.manual_seed(0)
    vae = tv.build_vae(case.backbone, image_size=case.image_size, latent_dim=arguments.latent_dim, weights=None).to(
        device
    )
    images = torch.rand(case.batch, 3, case.image_size, case.image_size, device=device)
    if arguments.channels_last:
        vae = vae.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    for name, operation in operations(vae, images, case.precision).items():
        yield measure(case, name, operation, device, arguments)


def operations(vae: tv.TransferVAE, images: torch.Tensor, precision: str) -> dict[str, Operation]:
    """What is timed, by name."""
    device = images.device.type
    dtype = PRECISIONS[precision]
    optimizer = torch.optim.Adam(vae.trainable_parameters(), lr=1e-4, fused=True)
    latent = torch.randn(len(images), *vae.latent_shape, device=images.device)

    def cast() -> torch.autocast:
        return torch.autocast(device, dtype=dtype, enabled=dtype is not None)

    def inference(part: Callable[[torch.Tensor], object], inputs: torch.Tensor) -> Operation:
        def run() -> object:
            vae.eval()
            with torch.inference_mode(), cast():
                return part(inputs)

        return run

    def training_step() -> None:
        vae.train()
        with cast():
            output = vae(images)
        tv.losses.elbo(output, images).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "backbone": inference(vae.backbone, images),
        "encode": inference(lambda batch: vae.encode(batch).mean, images),
        "decode": inference(vae.decode, latent),
        "reconstruct": inference(vae.reconstruct, images),
        "training step": training_step,
    }


def measure(
    case: Case, name: str, operation: Operation, device: torch.device, arguments: argparse.Namespace
) -> Measurement:
    """Warm up, count, watch the memory, and time single runs."""
    for _ in range(arguments.warmup):
        operation()
    flops = count_flops(operation)
    peak = peak_memory(operation, device)
    seconds = [time_once(operation, device) for _ in range(arguments.runs)]
    median = statistics.median(seconds)
    return Measurement(
        **asdict(case),
        operation=name,
        images_per_second=case.batch / median,
        slowest=case.batch / max(seconds),
        fastest=case.batch / min(seconds),
        seconds_median=median,
        runs=len(seconds),
        peak_memory=peak,
        flops_per_second=flops / median,
    )


def time_once(operation: Operation, device: torch.device) -> float:
    """Seconds of one run, from an idle device to an idle device."""
    _synchronise(device)
    began = time.perf_counter()
    operation()
    _synchronise(device)
    return time.perf_counter() - began


def count_flops(operation: Operation) -> int:
    """Floating-point operations of one run, a multiply-add counted as two."""
    with FlopCounterMode(display=False) as counter:
        operation()
    return int(counter.get_total_flops())


def peak_memory(operation: Operation, device: torch.device) -> int | None:
    """Bytes: of tensors on an accelerator, of the whole process on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        operation()
        return int(torch.cuda.max_memory_allocated(device))
    if not STATM.exists():
        return None
    with _watching_resident_memory() as samples:
        operation()
    return max(samples)


def describe_machine(device: torch.device) -> dict[str, object]:
    """Everything that the figures depend on."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": gpu.name if gpu else _processor(),
        "device_memory": gpu.total_memory if gpu else None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if gpu else None,
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


@contextmanager
def _watching_resident_memory() -> Iterator[list[int]]:
    page = os.sysconf("SC_PAGE_SIZE")
    stop = threading.Event()
    samples: list[int] = []

    def watch() -> None:
        while not stop.wait(SAMPLING_SECONDS):
            samples.append(int(STATM.read_text().split()[1]) * page)

    samples.append(int(STATM.read_text().split()[1]) * page)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - fixed words
    except (OSError, subprocess.CalledProcessError):
        return None


def _header() -> str:
    return (
        f"{'backbone':24} {'size':>5} {'batch':>5} {'precision':>9}  {'operation':13}"
        f" {'images/s':>9} {'(slowest - fastest)':>21} {'peak MiB':>9} {'GFLOP/s':>9}"
    )


def _row(row: Measurement) -> str:
    spread = f"({row.slowest:.1f} - {row.fastest:.1f})"
    memory = "-" if row.peak_memory is None else f"{row.peak_memory / 2**20:.0f}"
    return (
        f"{row.backbone:24} {row.image_size:>5} {row.batch:>5} {row.precision:>9}  {row.operation:13}"
        f" {row.images_per_second:>9.1f} {spread:>21} {memory:>9} {row.flops_per_second / 1e9:>9.1f}"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--backbone", nargs="+", default=["vgg19"], help="names for create_backbone")
    parser.add_argument("--size", nargs="+", type=int, default=[128], help="image sizes in pixels")
    parser.add_argument("--batch", nargs="+", type=int, default=[16], help="images a run")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument("--channels-last", action="store_true", help="lay images and weights out channels last")
    parser.add_argument("--latent-dim", type=int, default=128)
    parser.add_argument("--warmup", type=int, default=3, help="untimed runs of each operation")
    parser.add_argument("--runs", type=int, default=10, help="timed runs of each operation")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; its default if left out")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    arguments = parser.parse_args()
    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is available here; use --device cpu")
    if min(arguments.runs, arguments.warmup + 1, *arguments.size, *arguments.batch) < 1:
        parser.error("sizes, batches and runs must be at least 1, the warm-up at least 0")
    return arguments


if __name__ == "__main__":
    main()
