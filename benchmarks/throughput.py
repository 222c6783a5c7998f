"""Images per second of the library's stages, beside the same training step in other libraries.

    python benchmarks/throughput.py --device cpu --baseline torch keras pythae diffusers

Everything is timed in turn, round by round, in processes of its own, on random images and random weights, after a
warm-up, from an idle device to an idle device. Ratios are medians over rounds. The machine's ceilings, a large matrix
product and a large copy, are measured in the same rounds. It prints tables and writes JSON;
`python benchmarks/report.py` makes the documentation's page of it.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from measuring import CEILINGS, OWN, Pace, ceilings, measure, to_rows
from photographs import write_photographs
from protocol import Contender
from tables import print_group

SCHEMA = 2
RESULTS = Path(__file__).parent / "results"
BASELINES = ("torch", "keras", "pythae", "diffusers")
HINTS = {
    "torch": "written for vgg19 and timm:NAME",
    "keras": "pip install 'keras>=3.12' tensorflow, or --keras-python PATH of an interpreter that has them",
    "pythae": "pip install pythae",
    "diffusers": "pip install diffusers transformers",
}
MODULES = {
    "torch": "baselines.plain_torch",
    "keras": "baselines.keras_tensorflow",
    "pythae": "baselines.pythae_trainer",
}
TRAINING = ["train (live)", "train (cached)"]
PRECISIONS = ("float32", "bfloat16")
LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Case:
    """What is measured."""

    backbone: str
    image_size: int
    batch: int
    latent_dim: int


@dataclass(frozen=True)
class Scale:
    """How much is measured: all of it, or enough to see that it works.

    Attributes:
        pace: Of the tables.
        curve_pace: Of the curves.
        image_sizes: Points of the curve; the same for `batches` and `latent_dims`.
        rows: Of the smallest cache, of which `growth` gives multiples.
        window_bytes: What of a cache is mapped at once.
        photographs: Files that are read, to images of `photograph_size`.
        built_batches: Batches that a built cache holds.
        rae_batch: Images that a representation autoencoder gets at once.
    """

    pace: Pace
    curve_pace: Pace
    image_sizes: tuple[int, ...]
    batches: tuple[int, ...]
    latent_dims: tuple[int, ...]
    rows: int
    growth: tuple[int, ...]
    window_bytes: int
    photographs: int
    photograph_size: int
    built_batches: int
    rae_batch: int


FULL = Scale(
    pace=Pace(11, 0.5),
    curve_pace=Pace(5, 0.3),
    image_sizes=(64, 96, 128, 192),
    batches=(4, 16, 64),
    latent_dims=(32, 128, 512),
    rows=1024,
    growth=(1, 4, 16),
    window_bytes=2**27,
    photographs=64,
    photograph_size=224,
    built_batches=16,
    rae_batch=4,
)
QUICK = Scale(
    pace=Pace(2, 0.0),
    curve_pace=Pace(1, 0.0),
    image_sizes=(),
    batches=(),
    latent_dims=(),
    rows=16,
    growth=(1,),
    window_bytes=2**20,
    photographs=4,
    photograph_size=64,
    built_batches=2,
    rae_batch=1,
)


def main() -> None:
    """Measure what the arguments ask for, print tables, write JSON."""
    arguments = parse()
    bench = Bench(arguments, QUICK if arguments.quick else FULL)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "command": " ".join(["python benchmarks/throughput.py", *map(without_place, sys.argv[1:])]),
        "quick": arguments.quick,
        "machine": describe_machine(torch.device(arguments.device)),
        "groups": [],
        "curves": [],
    }
    for group in bench.groups():
        report["groups"].append(group)
        write(report, arguments.out)
    for curve in bench.curves() if arguments.curves else ():
        report["curves"].append(curve)
        write(report, arguments.out)
    if arguments.out:
        print(f"written: {arguments.out}")


def write(report: dict[str, Any], out: Path | None) -> None:
    """Write what there is so far, if it is to be kept."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


def without_place(word: str) -> str:
    """A word of the command line; where files lie on this machine is nobody's business."""
    return "PATH" if Path(word).is_absolute() else word


class Bench:
    """All that one call measures."""

    def __init__(self, arguments: argparse.Namespace, scale: Scale) -> None:
        """Plan it.

        Args:
            arguments: The command line.
            scale: How much is measured.
        """
        self.arguments = arguments
        self.chosen: dict[str, str] = {}
        self.scale = (
            scale if arguments.rounds is None else replace(scale, pace=scale.pace._replace(rounds=arguments.rounds))
        )

    def groups(self) -> Iterator[dict[str, Any]]:
        """The stages of each case, then reading photographs, then representation autoencoders."""
        given = self.arguments
        for case in itertools.product(given.backbone, given.size, given.batch, given.latent_dim):
            group = self.measure("stages", asdict(Case(*case)), self.step_contenders(Case(*case), None))
            own = next(row for row in group["rows"] if row["contender"] == OWN)
            self.chosen = self.chosen or {key: own[key] for key in ("precision", "layout")}
            yield group
        with tempfile.TemporaryDirectory() as folder:
            write_photographs(Path(folder) / "photographs", self.scale.photographs)
            about = {"image_size": self.scale.photograph_size, "photographs": self.scale.photographs}
            yield self.measure("reader", about, self.readers(folder))
        if "diffusers" in given.baseline:
            yield self.measure("rae", {"batch": self.scale.rae_batch, "image_size": 224}, self.rae_sides())

    def curves(self) -> Iterator[dict[str, Any]]:
        """How the cost of a training step grows, one thing changed at a time; the library's first way."""
        given, scale = self.arguments, self.scale
        case = Case(given.backbone[0], given.size[0], given.batch[0], given.latent_dim[0])
        cases = {
            "image_size": [replace(case, image_size=size) for size in scale.image_sizes],
            "batch": [replace(case, batch=batch) for batch in scale.batches],
            "latent_dim": [replace(case, latent_dim=latent_dim) for latent_dim in scale.latent_dims],
        }
        for axis, points in cases.items():
            if points:
                yield self.curve(axis, [one for point in points for one in self.point(point, TRAINING)])
        sets = [self.point(case, ["train (cached)"], scale.rows * times)[0] for times in scale.growth]
        yield self.curve("rows", sets)

    def curve(self, axis: str, contenders: list[Contender]) -> dict[str, Any]:
        """Measure all points of a curve in turn."""
        print(f"\ncurve: {axis}", flush=True)
        group = measure(contenders, self.scale.curve_pace)
        rows = [{"value": row["case"][axis], **row} for row in to_rows(group)]
        print_group(rows, first=axis)
        return {"axis": axis, "skipped": group.skipped, "rows": rows}

    def point(self, case: Case, stages: list[str], rows: int | None = None) -> list[Contender]:
        """Who is measured at a point of a curve: the library the first way it was before, and the step by hand."""
        contenders = self.step_contenders(case, stages, rows)
        own = {**contenders[0].options, **self.chosen}
        return [replace(contenders[0], options=own), *(one for one in contenders if one.name == "torch")]

    def measure(self, kind: str, case: dict[str, Any], contenders: list[Contender]) -> dict[str, Any]:
        """Measure a group and print its table."""
        print(f"\n{kind}: {', '.join(f'{name} {value}' for name, value in case.items())}", flush=True)
        group = measure([self.machine(), *contenders], self.scale.pace)
        rows = list(to_rows(group))
        print_group(rows)
        return {
            "kind": kind,
            "case": case,
            "ceilings": ceilings(group),
            "about": group.about,
            "skipped": group.skipped,
            "rows": rows,
        }

    def machine(self) -> Contender:
        """The ceilings."""
        return Contender(
            CEILINGS, "ceilings", {**self.common(), "quick": self.arguments.quick, "precisions": PRECISIONS}
        )

    def step_contenders(self, case: Case, stages: list[str] | None, rows: int | None = None) -> list[Contender]:
        """The library, each way it is asked for, and the baselines that train."""
        given = self.arguments
        about = asdict(case) if rows is None else {**asdict(case), "rows": rows}
        options = {**self.common(), **asdict(case), "stages": stages}
        own = {
            **options,
            "compile": given.compile,
            "workers": given.workers,
            "rows": max(rows or self.scale.rows, case.batch),
            "cache": None,
            "window": self.scale.window_bytes,
            "built": self.scale.built_batches * case.batch,
        }
        ways = itertools.product(given.precision, given.layout)
        library = [{**own, "precision": precision, "layout": layout} for precision, layout in ways]
        contenders = [Contender(OWN, "ours", each, about) for each in library]
        for name in [name for name in MODULES if name in given.baseline]:
            python = given.keras_python if name == "keras" else sys.executable
            contenders.append(Contender(name, MODULES[name], options, about, python=python, hint=HINTS[name]))
        return contenders

    def readers(self, folder: str) -> list[Contender]:
        """Ours and torchvision's."""
        options = {"folder": folder, "image_size": self.scale.photograph_size}
        return [
            Contender(OWN, "reader", options),
            Contender("torchvision", "baselines.torchvision_reader", options),
        ]

    def rae_sides(self) -> list[Contender]:
        """Ours and diffusers', on the same weights."""
        options = {**self.common(), "batch": self.scale.rae_batch}
        sides = [(OWN, "transfervae"), ("diffusers", "diffusers")]
        module, hint = "baselines.diffusers_rae", HINTS["diffusers"]
        return [Contender(name, module, {**options, "side": side}, hint=hint) for name, side in sides]

    def common(self) -> dict[str, Any]:
        """What every worker is told."""
        return {"device": self.arguments.device, "threads": self.arguments.threads}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--backbone", nargs="+", help="names for create_backbone")
    parser.add_argument("--size", nargs="+", type=int, help="image sizes in pixels")
    parser.add_argument("--batch", nargs="+", type=int, help="images a step")
    parser.add_argument("--latent-dim", nargs="+", type=int, help="lengths of the latent vector")
    parser.add_argument("--precision", nargs="+", choices=(*PRECISIONS, "auto"), default=["auto"])
    parser.add_argument("--memory-format", dest="layout", nargs="+", choices=(*LAYOUTS, "auto"), default=["auto"])
    parser.add_argument(
        "--baseline", nargs="+", action="extend", choices=BASELINES, default=["torch"], help="beside plain PyTorch"
    )
    parser.add_argument("--keras-python", default=sys.executable, help="an interpreter with Keras 3 and TensorFlow")
    parser.add_argument("--compile", action="store_true", help="compile the library's parts with torch.compile")
    parser.add_argument("--workers", type=int, default=0, help="processes that read the cache")
    parser.add_argument("--threads", type=int, help="CPU threads; each library's default if left out")
    parser.add_argument("--rounds", type=int, help="how often everything is timed in turn")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: does it work?")
    parser.add_argument("--no-curves", dest="curves", action="store_false", help="leave the curves out")
    parser.add_argument("--out", type=Path, help="the JSON file; benchmarks/results/DEVICE.json, or none with --quick")
    return complete(parser, parser.parse_args())


def complete(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> argparse.Namespace:
    """Fill in what was left out, and refuse what cannot work."""
    quick = arguments.quick
    arguments.backbone = arguments.backbone or ["timm:test_resnet" if quick else "vgg19"]
    arguments.size = arguments.size or [32 if quick else 128]
    arguments.batch = arguments.batch or [2 if quick else 16]
    arguments.latent_dim = arguments.latent_dim or [8 if quick else 128]
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is available here; use --device cpu")
    if min(*arguments.size, *arguments.batch, *arguments.latent_dim, arguments.rounds or 1) < 1:
        parser.error("sizes, batches, latent dimensions and rounds must be at least 1")
    if arguments.out is None and not quick:
        arguments.out = RESULTS / f"{device.type}.json"
    return arguments


if __name__ == "__main__":
    main()
