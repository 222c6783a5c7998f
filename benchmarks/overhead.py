"""What the library adds to timm: to a network's creation and to its forward pass.

Both sides are measured in turn within one process, so that a busy machine slows both. The forward pass of timm's side
is given normalised images, as a user of timm would have to make them; ours normalises inside and checks the range.

    python benchmarks/overhead.py --out overhead.json
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from machine import describe_machine

import transfervae as tv

NAMES = ("resnet50", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")
SCHEMA = 1


@dataclass(frozen=True)
class Comparison:
    """One network; seconds are medians, spreads are (fastest, slowest), ratios are the median over pairs of runs."""

    name: str
    operation: str
    timm_seconds: float
    timm_spread: tuple[float, float]
    ours_seconds: float
    ours_spread: tuple[float, float]
    ratio: float
    runs: int


def main() -> None:
    """Measure what the arguments ask for, print a table, write JSON."""
    arguments = parse()
    results = []
    for name in arguments.names:
        for operation, sides in (("create", creations(name)), ("forward", forwards(name, arguments.batch))):
            results.append(compare(name, operation, sides, arguments.runs))
            print(row(results[-1]), flush=True)
    if arguments.out:
        machine = describe_machine(torch.device("cpu"))
        report = {"schema": SCHEMA, "batch": arguments.batch, "machine": machine}
        report |= {"results": [asdict(result) for result in results]}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=NAMES, help="networks of timm")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each side")
    parser.add_argument("--out", type=Path, help="the JSON file")
    return parser.parse_args()


def creations(name: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Creation by timm and by us, both with random weights."""
    return (
        lambda: timm.create_model(name).eval(),
        lambda: tv.create_backbone(f"timm:{name}", weights=None),
    )


def forwards(name: str, batch: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The network's own forward pass up to the last stage, and the backbone's."""
    backbone = tv.create_backbone(f"timm:{name}", weights=None)
    network: Any = backbone.network.get_submodule("network")
    height, width = backbone.provenance.native_size or (224, 224)
    images = torch.rand(batch, 3, height, width)
    normalised = backbone.normalise(images)
    stages = backbone.network.stages
    backbone.feature_shape((height, width))

    def own() -> object:
        return network.forward_intermediates(normalised, indices=stages, output_fmt="NCHW", intermediates_only=True)

    return own, lambda: backbone(images)


@torch.no_grad()
def compare(
    name: str, operation: str, sides: tuple[Callable[[], object], Callable[[], object]], runs: int
) -> Comparison:
    """Warm up, then time both sides in turn, the one that goes first changing."""
    for side in sides:
        side()
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(runs):
        for which in (0, 1) if run % 2 else (1, 0):
            gc.collect()
            began = time.perf_counter()
            sides[which]()
            seconds[which].append(time.perf_counter() - began)
    theirs, ours = seconds
    return Comparison(
        name,
        operation,
        statistics.median(theirs),
        (min(theirs), max(theirs)),
        statistics.median(ours),
        (min(ours), max(ours)),
        statistics.median(mine / yours for mine, yours in zip(ours, theirs, strict=True)),
        runs,
    )


def row(result: Comparison) -> str:
    """A line of the table."""
    own = f"timm {1e3 * result.timm_seconds:8.1f} ms"
    return f"{result.name:32} {result.operation:8} {own}  ours {1e3 * result.ours_seconds:8.1f} ms  x{result.ratio:.3f}"


if __name__ == "__main__":
    main()
