"""Images per second of `evaluate` beside those of `reconstruct` alone, and its memory on a large set.

    python benchmarks/evaluation.py

Both get the same random images in batches of the same size, in turn, round by round, after a warm-up; the ratio is the
median over rounds. The memory is that of a process which evaluates --images images, beyond what it takes once the model
has reconstructed a batch.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from memory import peak_bytes, reset_peak
from torch import Tensor
from torch.utils.data import Dataset

import transfervae as tv

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"


class RandomImages(Dataset[Tensor]):
    """Random 8-bit images, made when they are read."""

    def __init__(self, count: int, size: int) -> None:
        """Take their number and size."""
        self.count = count
        self.size = size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, self.size, self.size), dtype=torch.uint8, generator=generator)


def main() -> None:
    """Measure, print, and write JSON."""
    arguments = parse()
    report: dict[str, Any] = {"schema": SCHEMA, "machine": describe_machine(torch.device(arguments.device))}
    report["speed"] = [measure_speed(name, arguments) for name in arguments.backbone]
    if arguments.images:
        report["memory"] = measure_memory(arguments)
    print(json.dumps({name: report[name] for name in ("speed", "memory") if name in report}, indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def measure_speed(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Images per second of both, and their ratio."""
    torch.manual_seed(0)
    spec = tv.Spec(name, weights=None)
    vae = tv.build_vae(spec, image_size=arguments.size, latent_dim=128).eval().to(arguments.device)
    count = arguments.batch * arguments.steps
    images = torch.stack([RandomImages(count, arguments.size)[index] for index in range(count)])

    def reconstruct() -> None:
        with torch.no_grad():
            for batch in images.split(arguments.batch):
                vae.reconstruct(batch.to(arguments.device).float() / 255).cpu()

    def evaluate() -> None:
        tv.evaluate(vae, images, batch_size=arguments.batch)

    rates: dict[str, list[float]] = {"reconstruct": [], "evaluate": []}
    calls: dict[str, Callable[[], None]] = {"reconstruct": reconstruct, "evaluate": evaluate}
    for number in range(arguments.rounds + 1):
        for which, call in calls.items():
            began = time.perf_counter()
            call()
            if number:  # the first is a warm-up
                rates[which].append(count / (time.perf_counter() - began))
    ratios = [own / alone for own, alone in zip(rates["evaluate"], rates["reconstruct"], strict=True)]
    return {
        "backbone": name,
        "image_size": arguments.size,
        "batch": arguments.batch,
        **{f"{which}_images_per_second": statistics.median(values) for which, values in rates.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak of the process's memory beyond what the model needs for a batch, on many small images."""
    vae = tv.build_vae(tv.Spec("timm:test_resnet", weights=None), image_size=32, latent_dim=8).eval()
    vae.reconstruct(torch.rand(arguments.batch, 3, 32, 32))
    reset_peak()
    before = peak_bytes() or 0
    began = time.perf_counter()
    tv.evaluate(vae, RandomImages(arguments.images, 32), batch_size=arguments.batch)
    seconds = time.perf_counter() - began
    return {"images": arguments.images, "seconds": seconds, "bytes_beside_the_model": (peak_bytes() or 0) - before}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backbone", nargs="+", default=["vgg19", "packaged"], help="names for create_backbone")
    parser.add_argument("--size", type=int, default=128, help="image size in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="batches a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=100_000, help="of the large set; 0 for none")
    parser.add_argument("--out", type=Path, default=RESULTS / "evaluation.json", help="the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
