"""How good reconstructions of held-out photographs are after how many seconds, beside other ways to get there.

    pip install pythae 'transfervae[train,offline]'
    python benchmarks/time_to_quality.py --data faces FOLDER 2/10 30 --keras-python PATH

A data set is a name, a folder, which photographs are held out (2/10: the last two of every ten, in order of their
paths), and passes over the rest. Each learner is a process of its own and has all cores; its clock begins once its
libraries are imported, and stands while it is judged. The library's includes reading the photographs, choosing a
precision and computing features. Everybody gets latents of the same length, batches of the same size and as many
passes; PyTorch by hand and pythae read the frozen network at one stage, of stride 16, in every step.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from learners.common import Task
from machine import describe_machine
from report import LEARNERS

mpl.use("Agg")

from matplotlib import pyplot as plt

SCHEMA = 1
HERE = Path(__file__).parent
SUFFIXES = {".png", ".jpg", ".jpeg"}
Curve = Sequence[Mapping[str, float]]


def main() -> None:
    """Measure, print, draw, and write JSON."""
    arguments = parse()
    report: dict[str, Any] = {"schema": SCHEMA, "machine": describe_machine(torch.device("cpu")), "sets": []}
    for name, folder, held, epochs in arguments.data:
        with tempfile.TemporaryDirectory() as work:
            counts = split(Path(folder), held, Path(work))
            task = Task(
                training=str(Path(work, "train")),
                held=str(Path(work, "held")),
                image_size=arguments.size,
                latent_dim=arguments.latent_dim,
                batch=arguments.batch,
                epochs=int(epochs),
                limit=arguments.limit,
                seed=arguments.seed,
            )
            curves = {learner: learn(learner, task, arguments.keras_python) for learner in arguments.learner}
        options = {key: value for key, value in asdict(task).items() if key not in {"training", "held"}}
        measured = {"name": name, "held": held, **counts, **options, "curves": curves}
        report["sets"].append({**measured, "seconds_to": seconds_to(curves)})
        print_set(report["sets"][-1])
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(report["sets"], arguments.picture)


def split(folder: Path, held: str, work: Path) -> dict[str, int]:
    """Copy photographs to train/ and held/."""
    last, of = map(int, held.split("/"))
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    counts = {"train": 0, "held": 0}
    for part in counts:
        (work / part).mkdir()
    for number, path in enumerate(paths):
        part = "held" if number % of >= of - last else "train"
        counts[part] += 1
        shutil.copyfile(path, work / part / f"{number:07d}{path.suffix.lower()}")
    return {f"{part}_images": count for part, count in counts.items()}


def learn(learner: str, task: Task, keras_python: str) -> list[dict[str, float]]:
    """Run a learner; its curve, empty if it could not run."""
    python = keras_python if learner == "keras_tensorflow" else sys.executable
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))}
    command = [python, "-m", f"learners.{learner}", json.dumps(asdict(task))]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - ours
    curve = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"seconds"')]
    if process.returncode:
        print(f"{LEARNERS[learner]} ended with {process.returncode}: {process.stderr.strip()[-400:]}", file=sys.stderr)
    return curve


def seconds_to(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Seconds of each learner until it is as good as the encoder from scratch at its end; None if it never is."""
    if not curves.get("from_scratch"):
        return {}
    wanted = curves["from_scratch"][-1]["psnr"]
    reached = {name: [point["seconds"] for point in curve if point["psnr"] >= wanted] for name, curve in curves.items()}
    return {"psnr": wanted, **{name: min(found, default=None) for name, found in reached.items()}}


def print_set(measured: Mapping[str, Any]) -> None:
    """A table of one data set."""
    wanted = measured["seconds_to"]
    print(f"\n{measured['name']}: {measured['train_images']} to learn from, {measured['held_images']} held out")
    for name, curve in measured["curves"].items():
        if curve:
            reached = wanted.get(name)
            until = f"{wanted.get('psnr', 0):.2f} dB " + ("never" if reached is None else f"after {reached:.0f} s")
            print(f"{LEARNERS[name]:28} {curve[-1]['psnr']:.2f} dB in {curve[-1]['seconds']:.0f} s; {until}")


def draw(sets: Sequence[Mapping[str, Any]], path: Path) -> None:
    """PSNR over seconds, one panel a data set."""
    figure, panels = plt.subplots(1, len(sets), figsize=(5.5 * len(sets), 4), squeeze=False, layout="constrained")
    for panel, measured in zip(panels[0], sets, strict=True):
        for number, (name, curve) in enumerate(measured["curves"].items()):
            points = [(point["seconds"], point["psnr"]) for point in curve]
            width = 2.5 if name == "ours" else 1.2
            panel.plot(*zip(*points, strict=True), color=f"C{number}", label=LEARNERS[name], lw=width)
        panel.set(title=measured["name"], xlabel="seconds", ylabel="held-out PSNR, dB", xscale="log")
        panel.grid(alpha=0.3, which="both")
    panels[0][0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs=4, action="append", required=True, metavar=("NAME", "FOLDER", "HELD", "EPOCHS"))
    parser.add_argument("--learner", nargs="+", choices=LEARNERS, default=list(LEARNERS))
    parser.add_argument("--keras-python", default=sys.executable, help="an interpreter that has Keras and TensorFlow")
    parser.add_argument("--size", type=int, default=64, help="image size in pixels")
    parser.add_argument("--latent-dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a learner stops")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "time_to_quality.json", help="the JSON file")
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/time-to-quality.png"), help="the plot")
    return parser.parse_args()


if __name__ == "__main__":
    main()
