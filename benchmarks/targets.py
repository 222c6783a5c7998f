"""What was promised of the speed, and whether the figures keep it."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Report = Mapping[str, Any]

CASE = {"backbone": "vgg19", "image_size": 128, "batch": 16, "latent_dim": 128}
MEGA = 1e6
CHECKPOINT_LIMIT = 40
STEADY = 1.1
"""Peaks that differ by no more are the same."""


class Target(NamedTuple):
    """One promise.

    Attributes:
        name: In words.
        wanted: The bound, in words.
        found: The figure, None if it was not measured.
        is_met: Whether it keeps the promise, None if it was not measured.
    """

    name: str
    wanted: str
    found: float | None
    is_met: bool | None


def cpu_targets(report: Report | None, scale: Report | None) -> Iterator[Target]:
    """Those of two CPU cores: 128x128, batch 16, VGG19 block5_pool, latent 128."""
    rows = _rows(report, CASE)
    for stage, name, words, least in (
        ("train (live)", "torch", "train (live) over PyTorch by hand", 2.5),
        ("train (live)", "keras", "train (live) over Keras", 2.5),
        ("train (cached)", "torch", "train (cached) over PyTorch by hand", 12.0),
        ("train (cached)", "keras", "train (cached) over Keras", 12.0),
        ("train (cached)", "own head and decoder", "train (cached) over head and decoder alone", 0.95),
        ("cache build", "own backbone", "cache build over the backbone alone", 0.95),
    ):
        yield at_least(words, _ratio(rows, stage, name), least)
    growth = _growth(scale)
    words = "peak host memory of cached training, largest set over smallest"
    yield Target(words, f"at most {STEADY}", growth, None if growth is None else growth <= STEADY)
    size = _checkpoint(report)
    yield Target("saved default model, MB", f"below {CHECKPOINT_LIMIT}", size, None if size is None else size < 40)


def cuda_targets(report: Report | None) -> Iterator[Target]:
    """Those of an NVIDIA GPU."""
    rows = _rows(report, None)
    wide = _rows(report, {"image_size": 224})
    share = _first([row["share_of_matrix_product"] for row in wide if is_backbone(row)])
    yield at_least("backbone at 224, bfloat16, of the matrix product's rate", share, 0.6)
    yield at_least("train (live) over PyTorch by hand", _ratio(rows, "train (live)", "torch"), 4.0)
    yield at_least("train (cached) over PyTorch by hand", _ratio(rows, "train (cached)", "torch"), 20.0)


def is_backbone(row: Mapping[str, Any]) -> bool:
    """Whether a row is of our backbone in bfloat16."""
    return (row["contender"], row["stage"], row["precision"]) == ("transfervae", "backbone", "bfloat16")


def at_least(name: str, found: float | None, least: float) -> Target:
    """A promise of no less than a bound."""
    return Target(name, f"at least {least:g}", found, None if found is None else found >= least)


def _rows(report: Report | None, case: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Rows of the first group of stages whose case has these values."""
    for group in report["groups"] if report else ():
        fits = case is None or all(group["case"].get(key) == value for key, value in case.items())
        if group["kind"] == "stages" and fits:
            return list(group["rows"])
    return []


def _ratio(rows: list[Mapping[str, Any]], stage: str, over: str) -> float | None:
    return _first([row["ratios"][over]["median"] for row in rows if row["stage"] == stage and over in row["ratios"]])


def _growth(scale: Report | None) -> float | None:
    parts = [part for name, part in (scale["parts"] if scale else {}).items() if name.startswith("memory")]
    sets = sorted(parts, key=lambda part: float(part["gigabytes"]))
    return float(sets[-1]["peak_bytes"] / sets[0]["peak_bytes"]) if len(sets) > 1 else None


def _checkpoint(report: Report | None) -> float | None:
    for group in report["groups"] if report else ():
        if group["kind"] == "stages" and all(group["case"][key] == CASE[key] for key in ("backbone", "image_size")):
            return float(group["about"]["transfervae"]["checkpoint_bytes"] / MEGA)
    return None


def _first(values: list[Any]) -> float | None:
    return float(values[0]) if values and values[0] is not None else None
