"""The result of an evaluation: written to JSON, read back, and compared."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transfervae.errors import CheckpointError, InvalidOptionError
from transfervae.files import read_json, write_atomically

SCHEMA = 2

SAME_PROTOCOL = (
    "image_size",
    "resize",
    "rounding",
    "images",
    "images_sha256",
    "latent",
    "seed",
    "extractors",
    "likelihood_draws",
    "torchmetrics",
)
"""Entries of a protocol that must agree before figures are put side by side."""

DRAWN_FIGURES = ("draw_rmse", "nll")
"""Figures of draws, which are others in batches of another size, or on another number of processes."""

DRAWN_PROTOCOL = ("batch_size", "processes", "device")


class ImageFigures(NamedTuple):
    """Errors of one image.

    Attributes:
        name: Its path within the folder, or its place in the data set.
        rmse: Root of the mean squared error, in [0, 1].
        label: Name of its class, if it has one.
    """

    name: str
    rmse: float
    label: str | None


class PartFigures(NamedTuple):
    """Errors of one part of the images, such as the eyes.

    Attributes:
        pixels: Share of all pixels, in [0, 1].
        rmse: Root of the mean squared error over the part's pixels.
        contrast: The same error of the mean image: how much the part varies.
        removed: Share of the mean image's squared error that the model removes: 1 - (rmse / contrast)^2; 1 is perfect,
            0 no better than the mean image.
        low: Lower end of the 95 % interval of `removed`, by bootstrap over images.
        high: Upper end.
    """

    pixels: float
    rmse: float
    contrast: float
    removed: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures of a model over images.

    Attributes:
        figures: Metrics by name, of the posterior's mode; and `draw_rmse`, that of draws.
        baseline: `rmse` and `chroma` of predicting the mean image for all.
        protocol: How the figures were measured: sizes, images with their hash, extractors, versions.
        verdicts: What is wrong, in plain sentences; empty if nothing was found.
        images: Errors by image.
        classes: Mean RMSE by class.
        parts: Errors by part, where masks were given.
        frequencies: Error by spatial frequency: see `Spectrum`.
        error_map: Mean absolute error of each pixel, rows of columns, in [0, 1].
    """

    figures: Mapping[str, float]
    baseline: Mapping[str, float]
    protocol: Mapping[str, Any]
    verdicts: Sequence[str]
    images: Sequence[ImageFigures]
    classes: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, PartFigures] = field(default_factory=dict)
    frequencies: Sequence[float] = ()
    error_map: Sequence[Sequence[float]] = ()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON.

        Raises:
            FileWriteError: If the file cannot be written.
        """
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=1).encode() + b"\n")

    def to_dict(self, *, with_images: bool = True) -> dict[str, Any]:
        """The report in plain values, as `write` writes them.

        Args:
            with_images: Also what there is of each image, pixel and frequency.
        """
        values = asdict(self) | {
            "schema": SCHEMA,
            "figures": {name: value if math.isfinite(value) else str(value) for name, value in self.figures.items()},
            "images": [entry._asdict() for entry in self.images],
            "parts": {name: part._asdict() for name, part in self.parts.items()},
        }
        left_out = () if with_images else ("images", "frequencies", "error_map")
        return {name: value for name, value in values.items() if name not in left_out}

    @staticmethod
    def read(path: str | os.PathLike[str]) -> "Report":
        """Read a report that `write` wrote.

        Raises:
            CheckpointError: If the file is missing, damaged, or of another version.
        """
        values = read_json(Path(path))
        if values.pop("schema", None) != SCHEMA:
            raise CheckpointError(f"{str(path)!r} is no report of this version of transfervae; evaluate again.")
        try:
            images = [ImageFigures(**entry) for entry in values.pop("images")]
            parts = {name: PartFigures(**part) for name, part in values.pop("parts").items()}
            figures = {name: float(value) for name, value in values.pop("figures").items()}
            baseline = {name: float(values["baseline"][name]) for name in ("rmse", "chroma")}
            report = Report(images=images, parts=parts, figures=figures, **{**values, "baseline": baseline})
            is_whole = isinstance(report.protocol, dict) and set(SAME_PROTOCOL) <= report.protocol.keys()
            is_whole = is_whole and all(map(str.isidentifier, figures))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{str(path)!r} holds no report: {error}") from error
        if not is_whole or any(map(math.isnan, figures.values())):
            raise CheckpointError(f"{str(path)!r} holds no report: its protocol or a figure is missing.")
        return report


def compare_reports(reports: Mapping[str, Report]) -> dict[str, dict[str, float]]:
    """The figures of several reports side by side.

    Args:
        reports: By the name that each is shown under.

    Returns:
        By figure, the value of each report that has it; without those of draws, if these were drawn otherwise.

    Raises:
        InvalidOptionError: If their protocols differ, naming the entry: such figures cannot be compared.
    """
    first, *others = reports
    expected = reports[first].protocol
    for name in others:
        protocol = reports[name].protocol
        for entry in SAME_PROTOCOL:
            if protocol.get(entry) != expected.get(entry):
                raise InvalidOptionError(
                    f"The figures of {first} and {name} cannot be compared: {entry} is {expected.get(entry)!r} and"
                    f" {protocol.get(entry)!r}."
                )
    is_drawn_alike = all(
        report.protocol.get(entry) == expected.get(entry) for report in reports.values() for entry in DRAWN_PROTOCOL
    )
    names = dict.fromkeys(
        figure
        for report in reports.values()
        for figure in report.figures
        if is_drawn_alike or figure not in DRAWN_FIGURES
    )
    return {
        figure: {name: report.figures[figure] for name, report in reports.items() if figure in report.figures}
        for figure in names
    }
