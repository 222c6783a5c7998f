"""Write docs/benchmarks.md, and its plots, from the committed results.

    python benchmarks/report.py

The page is made of `benchmarks/results/*.json` and `docs/results/overhead.json` alone: no figure in it is typed by
hand. What has no results is "not measured yet". `time_to_quality.py` and `decoder_curve.py` draw their own plots.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import markdown, mebibytes, percent
from targets import Target, cpu_targets, cuda_targets

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OVERHEAD = ROOT / "docs" / "results" / "overhead.json"
SOURCES = ("cpu", "cuda", "scale", "time_to_quality", "decoders")
MISSING = "Not measured yet."

Report = Mapping[str, Any]

NAMES = {
    "transfervae": "TransferVAE",
    "torch": "PyTorch by hand",
    "keras": "Keras 3 on TensorFlow",
    "pythae": "pythae's trainer",
    "diffusers": "diffusers' AutoencoderRAE",
    "torchvision": "torchvision's ImageFolder",
    "own head and decoder": "head and decoder",
    "own backbone": "backbone",
}

LEARNERS = {
    "ours": "TransferVAE",
    "from_scratch": "encoder from scratch",
    "plain_torch": "PyTorch by hand",
    "pythae_trainer": "pythae",
    "keras_tensorflow": "Keras, encoder from scratch",
}

AXES = {"image_size": "image size", "batch": "batch", "latent_dim": "latent size", "rows": "images in the cache"}

INTRODUCTION = """\
# Benchmarks

<!-- Written by `python benchmarks/report.py`; do not edit. -->

`benchmarks/throughput.py` times the library's stages and, beside them, the same training step in other libraries:
written by hand in plain PyTorch (float32, nothing cached: `benchmarks/baselines/plain_torch.py`), in Keras 3 on
TensorFlow, and in pythae's trainer; encoding and decoding of diffusers' `AutoencoderRAE` beside ours on the same
weights; and torchvision's reader of photographs.

```bash
python benchmarks/throughput.py --device cpu --baseline keras pythae diffusers --keras-python PATH
python benchmarks/throughput.py --device cuda --size 128 224
python benchmarks/throughput.py --quick
python benchmarks/scale.py --work FOLDER
python benchmarks/time_to_quality.py --data NAME FOLDER 2/10 30 --keras-python PATH
OMP_NUM_THREADS=1 python benchmarks/decoder_curve.py --case vector FOLDER 400 --case map FOLDER 4000
python benchmarks/report.py
```

Each contender is a process of its own, and all of them are timed in turn, round by round, so that a busy machine slows
all alike. Images and weights are random; a run is timed from an idle device to an idle device after a warm-up. Speeds
are medians over rounds, with the slowest and the fastest; ratios are medians of the ratios within a round. All train
equally many parameters with Adam, from the same float32 images in memory, the library in the precision and memory
layout that it chooses for the machine. "train (cached)" reads images and features from a cache on disk, "head and
decoder" is the same step on tensors that are in memory, and "cache build" goes from images in memory to files. pythae
trains with its own objective, and its figure includes its loader.

Peak memory is that of the whole process on the host, and of tensors on an accelerator. A share compares FLOP/s, a
multiply-add counted as two, with those of a large matrix product in the same precision in the same round, and the bytes
that operations read and write with those of a large copy; caches take the latter beyond what memory gives, and small
models leave both low.
"""

LIMITS = """
A step from the cache takes as long as head and decoder alone: reading costs next to nothing, and what is left is the
decoder. Its speed is bound by memory rather than by arithmetic, as its small share of the matrix product's rate shows.
In a profile, convolutions take about a third of the step; group normalisation, whose backward pass is the longest
single operation, about as much; activations, upsampling, casts to bfloat16 and Adam take the rest. Tried to go beyond
it: the other memory layout and `torch.compile` were both slower on this machine. A larger threshold of the C library's
allocator (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`) saves page faults and some per cent, but belongs to the
user's process, so the library leaves it alone.
"""


def main() -> None:
    """Write the page and, unless they are left out, the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="the documentation's folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where cpu.json, cuda.json and scale.json are")
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="write the page alone")
    arguments = parser.parse_args()
    reports = {name: read(arguments.results / f"{name}.json") for name in SOURCES}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmarks.md").write_text("\n".join(page(reports, read(OVERHEAD))), encoding="utf-8")
    if arguments.plots:
        from plots import draw_all

        draw_all(reports, arguments.out / "pictures", NAMES, AXES)


def read(path: Path) -> Report | None:
    """A JSON file, if it is there."""
    if not path.exists():
        return None
    report: Report = json.loads(path.read_text())
    return report


def page(reports: Mapping[str, Report | None], overhead: Report | None) -> Iterator[str]:
    """The page's lines."""
    yield INTRODUCTION
    yield "## Targets\n"
    yield "Two CPU cores, VGG19 at `block5_pool`, 128x128 images, batch 16, 128 latent dimensions:\n"
    yield from target_table(cpu_targets(reports["cpu"], reports["scale"]))
    if reports["cpu"] is not None:
        yield LIMITS
    yield "\nAn NVIDIA GPU:\n"
    yield from target_table(cuda_targets(reports["cuda"]))
    yield "\n## Seconds to a quality\n"
    yield from quality_section(reports["time_to_quality"])
    yield "\n## Decoders at equal seconds\n"
    yield from decoder_section(reports["decoders"])
    yield "\n## On a CPU\n"
    yield from device_section(reports["cpu"], "cpu")
    yield "\n## On an NVIDIA GPU\n"
    yield from device_section(reports["cuda"], "cuda")
    yield "\n## Large data sets\n"
    yield from scale_section(reports["scale"])
    yield "\n## What the library adds to timm\n"
    yield from overhead_section(overhead)
    yield ""


def target_table(targets: Iterable[Target]) -> list[str]:
    """Promises and figures."""
    rows = [(target.name, target.wanted, figure(target.found), verdict(target)) for target in targets]
    return markdown(["", "target", "measured", ""], rows)


def verdict(target: Target) -> str:
    """In words."""
    return "not measured yet" if target.is_met is None else "met" if target.is_met else "**missed**"


def device_section(report: Report | None, device: str) -> Iterator[str]:
    """Everything that one call of throughput.py measured."""
    if report is None:
        yield MISSING
        return
    yield from machine_lines(report)
    for group in report["groups"]:
        yield f"\n### {title(group)}\n"
        yield from group_lines(group)
    if report["curves"]:
        yield "\n### How the cost grows\n"
        yield f"Training steps, one thing changed at a time (`benchmarks/results/{device}.json`).\n"
        yield f"![Images per second over size, batch, latent and data set](pictures/benchmark-{device}.png)\n"
        for curve in report["curves"]:
            yield from curve_table(curve)
            yield ""


def machine_lines(report: Report) -> Iterator[str]:
    """Where, when and with what."""
    machine = report["machine"]
    versions = dict(machine["versions"])
    for group in report.get("groups", ()):
        for said in group["about"].values():
            versions |= said.get("versions", {})
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads; {machine['system']}."
    yield f"Python {machine['python']}, {named}; commit {machine['commit']}, {machine['date'][:10]}."
    if "command" in report:
        yield f"\n```bash\n{report['command']}\n```"


def title(group: Mapping[str, Any]) -> str:
    """A group's heading."""
    case = group["case"]
    if group["kind"] == "reader":
        return f"Reading photographs at {case['image_size']}x{case['image_size']}"
    if group["kind"] == "rae":
        return f"Representation autoencoders, batch {case['batch']}"
    size = f"{case['image_size']}x{case['image_size']}"
    return f"{case['backbone']}, {size}, batch {case['batch']}, {case['latent_dim']} latent dimensions"


def group_lines(group: Mapping[str, Any]) -> Iterator[str]:
    """A group's table, its ceilings, and who is missing."""
    if group["kind"] == "reader":
        yield f"{group['case']['photographs']} JPEG files of 500x375 pixels, one core.\n"
    if group["kind"] == "rae":
        yield "A small DINOv2 and a decoder of its size, random weights, float32.\n"
    header = ["", "precision", "layout", "stage", "images/s", "slowest to fastest", "times as fast as"]
    header += ["host MiB", "device MiB", "GFLOP/s", "of the product", "of the copy"]
    yield from markdown(header, [cells(row) for row in group["rows"]])
    if group["kind"] != "reader":
        yield f"\nThe machine in the same rounds: {ceilings(group['ceilings'])}."
    for name, reason in group["skipped"].items():
        yield f"\n{NAMES[name]}: not measured ({reason.splitlines()[0]})."


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of a table."""
    flops = row["flops_per_second"]
    ratios = [f"{NAMES[name]}: {ratio['median']:.2f}" for name, ratio in row["ratios"].items()]
    return [
        NAMES[row["contender"]],
        row["precision"],
        row["layout"].replace("_", " "),
        row["stage"],
        f"{row['images_per_second']:.1f}",
        f"{row['slowest']:.1f} to {row['fastest']:.1f}",
        "; ".join(ratios),
        mebibytes(row["host_peak_bytes"]),
        mebibytes(row["device_peak_bytes"]),
        "-" if flops is None else f"{flops / 1e9:.0f}",
        percent(row["share_of_matrix_product"]),
        percent(row["share_of_copy"]),
    ]


def ceilings(measured: Mapping[str, Mapping[str, float]]) -> str:
    """The machine's own rates, in words."""
    return ", ".join(
        f"{name} {rate['median'] / 1e9:.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}"
        for name, rate in measured.items()
    )


def curve_table(curve: Mapping[str, Any]) -> list[str]:
    """A curve's points."""
    rows = [
        [
            str(row["value"]),
            NAMES[row["contender"]],
            row["stage"],
            f"{row['images_per_second']:.1f}",
            f"{row['slowest']:.1f} to {row['fastest']:.1f}",
            mebibytes(row["host_peak_bytes"]),
        ]
        for row in curve["rows"]
    ]
    return markdown([AXES[curve["axis"]], "", "stage", "images/s", "slowest to fastest", "host MiB"], rows)


def quality_section(report: Report | None) -> Iterator[str]:
    """What time_to_quality.py measured."""
    if report is None:
        yield MISSING
        return
    yield "From photographs on disk to reconstructions of held-out ones: reading, choosing a precision and computing"
    yield "features included. PyTorch by hand and pythae read the frozen network at one stage, of stride 16, in every"
    yield "step; the encoder from scratch has the library's head, decoder, objective and optimiser; Keras learns an"
    yield "encoder as in its own example. Latents are vectors of 128.\n"
    yield from machine_lines(report)
    yield "\n![PSNR over seconds](pictures/time-to-quality.png)\n"
    for measured in report["sets"]:
        wanted = measured["seconds_to"]
        size = f"{measured['image_size']}x{measured['image_size']}"
        counts = f"{measured['train_images']} photographs to learn from, {measured['held_images']} held out"
        limits = f"batch {measured['batch']}, {measured['epochs']} epochs or {measured['limit']:g} seconds"
        yield f"\n{measured['name']}: {counts}, {size}, {limits}.\n"
        header = ["", "PSNR at the end, dB", "after seconds", f"seconds to {wanted['psnr']:.2f} dB"]
        rows = [quality_cells(name, curve, wanted) for name, curve in measured["curves"].items() if curve]
        yield from markdown(header, rows)


def quality_cells(name: str, curve: Sequence[Mapping[str, float]], wanted: Mapping[str, Any]) -> list[str]:
    """A learner's row."""
    reached = wanted[name]
    end = curve[-1]
    return [
        LEARNERS[name],
        f"{end['psnr']:.2f}",
        f"{end['seconds']:.0f}",
        "never" if reached is None else f"{reached:.0f}",
    ]


def decoder_section(report: Report | None) -> Iterator[str]:
    """What decoder_curve.py measured."""
    if report is None:
        yield MISSING
        return
    yield "Held-out RMSE of `packaged` with one decoder or another: the same head, objective, optimiser, batches and"
    yield "seconds of one core, without the features' computation.\n"
    yield from machine_lines(report)
    yield "\n![Error over seconds](pictures/decoder-curve.png)\n"
    cases = list(dict.fromkeys((row["latent"], row["data"], row["seconds"]) for row in report["rows"]))
    found = {(row["latent"], row["data"], row["seconds"], row["decoder"]): row for row in report["rows"]}
    header = ["decoder", *(f"{data}, {latent}, {seconds:g} s" for latent, data, seconds in cases)]
    names = list(dict.fromkeys(row["decoder"] for row in report["rows"]))
    yield from markdown(header, [[name, *(f"{found[*case, name]['rmse']:.4f}" for case in cases)] for name in names])


def scale_section(report: Report | None) -> Iterator[str]:
    """What scale.py measured."""
    if report is None:
        yield MISSING
        return
    yield from machine_lines(report)
    sets = [part for name, part in report["parts"].items() if name.startswith("memory")]
    runs = {name: part for name, part in report["parts"].items() if not name.startswith("memory")}
    if sets:
        yield "\nTraining from caches of several sizes, 128x128 images with VGG19's features, batch 16; a gibibyte of a"
        yield "cache is mapped at once, and its pages count as resident until they are unmapped.\n"
        header = ["cache, GB", "images", "peak MiB", "without mapped files"]
        yield from markdown(header, [set_cells(part) for part in sets])
    if runs:
        yield "\nThe command line, as a user runs it:\n"
        header = ["command", "images/s by epoch", "minutes", "peak MiB", "without mapped files", "disk, MB"]
        yield from markdown(header, [run_cells(part) for part in runs.values()])
    yield "\n![Memory over time](pictures/benchmark-scale.png)"


def set_cells(part: Mapping[str, Any]) -> list[str]:
    """A row of the table of caches."""
    return [
        f"{part['gigabytes']:g}",
        str(part["rows"]),
        mebibytes(part["peak_bytes"]),
        mebibytes(part["peak_own_bytes"]),
    ]


def run_cells(part: Mapping[str, Any]) -> list[str]:
    """A row of the table of commands."""
    speeds = ", ".join(f"{speed:.0f}" for speed in part["images_per_second"])
    disk = f"{part['disk_bytes'] / 1e6:.0f}" if "disk_bytes" in part else "-"
    memory = [mebibytes(part["peak_bytes"]), mebibytes(part["peak_own_bytes"])]
    return [f"`{part['command']}`", speeds, f"{part['seconds'] / 60:.1f}", *memory, disk]


def overhead_section(report: Report | None) -> Iterator[str]:
    """What overhead.py measured."""
    if report is None:
        yield MISSING
        return
    yield "Creating a network with random weights, and its forward pass on a batch of"
    yield f"{report['batch']}, beside timm's own. timm is given images that are normalised already; the backbone"
    yield "normalises, and checks their range. Both sides run in turn in one process; the ratio is the median over"
    yield "pairs of runs.\n"
    yield "```bash\npython benchmarks/overhead.py --out docs/results/overhead.json\n```\n"
    rows = [overhead_cells(row) for row in report["results"]]
    yield from markdown(["network", "operation", "timm, ms", "here, ms", "ratio"], rows)
    cores = report["machine"]["cores"]
    yield f"\nSource: [results/overhead.json](results/overhead.json), {cores} CPU cores. Creation is a little faster"
    yield "where the classifier is left out."


def overhead_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table of timm's networks."""
    theirs, ours = f"{1e3 * row['timm_seconds']:.0f}", f"{1e3 * row['ours_seconds']:.0f}"
    return [row["name"], row["operation"], theirs, ours, f"{row['ratio']:.3f}"]


def figure(value: float | None) -> str:
    """A measured figure."""
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
