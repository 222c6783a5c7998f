"""The page's plots."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Report = Mapping[str, Any]


def draw_all(
    reports: Mapping[str, Report | None], folder: Path, names: Mapping[str, str], axes: Mapping[str, str]
) -> None:
    """Draw what there are results for.

    Args:
        reports: Of "cpu", "cuda" and "scale".
        folder: For the pictures; made if missing.
        names: Of contenders, as the page shows them.
        axes: Of curves, likewise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for device in ("cpu", "cuda"):
        report = reports[device]
        if report is not None and report["curves"]:
            draw_curves(report, folder / f"benchmark-{device}.png", names, axes)
    if reports["scale"] is not None:
        draw_memory(reports["scale"], folder / "benchmark-scale.png")


def draw_curves(report: Report, path: Path, names: Mapping[str, str], axes: Mapping[str, str]) -> None:
    """Images per second, one panel a curve."""
    curves = report["curves"]
    size = (4 * len(curves), 3.6)
    figure, panels = plt.subplots(1, len(curves), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for panel, curve in zip(panels[0], curves, strict=True):
        draw_curve(panel, curve, names)
        panel.set(xlabel=axes[curve["axis"]], xscale="log", yscale="log")
        values = sorted({row["value"] for row in curve["rows"]})
        panel.set_xticks(values, labels=[str(value) for value in values], minor=False)
        panel.minorticks_off()
    panels[0][0].set_ylabel("images/s")
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curve(panel: Axes, curve: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """One line a contender and stage, with its spread."""
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in curve["rows"]:
        lines.setdefault((row["contender"], row["stage"]), []).append(row)
    colours = {"train (live)": "C0", "train (cached)": "C1"}
    for (contender, stage), rows in lines.items():
        is_own = contender == "transfervae"
        speeds = [row["images_per_second"] for row in rows]
        below = [row["images_per_second"] - row["slowest"] for row in rows]
        above = [row["fastest"] - row["images_per_second"] for row in rows]
        values, label = [row["value"] for row in rows], f"{names[contender]}, {stage}"
        look: Any = {"color": colours[stage] if is_own else "0.5", "marker": "o", "capsize": 2}
        panel.errorbar(values, speeds, yerr=[below, above], label=label, **look)
    panel.grid(alpha=0.3)


def draw_memory(report: Report, path: Path) -> None:
    """Resident memory over time, caches of several sizes on the left, the command line on the right."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for name, part in report["parts"].items():
        panel = panels[0 if name.startswith("memory") else 1]
        seconds = [sample[0] for sample in part["samples"]]
        panel.plot(seconds, [sample[1] / 2**20 for sample in part["samples"]], label=name.removeprefix("memory "))
    for panel, title in zip(panels, ("cached training, by size of the cache", "the command line"), strict=True):
        panel.set(xlabel="seconds", ylabel="resident MiB", title=title)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
